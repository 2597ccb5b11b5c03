"""Small pictures of samples: what is stored is what is seen."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.runs import make_spec, make_workspace, run_here, sparsity
from pruning_server.spec.report_accuracy import AccuracySection, ChangedSample, ChurnSection, PairedNumber
from pruning_server.spec.request import Evaluation, Layout, Preprocessing, Recovery
from pruning_server.worker.feeding import Feed, Samples
from pruning_server.worker.forms import IMAGE_SCALE, InputForm
from pruning_server.worker.thumbnails import MAX_SIDE, MAX_THUMBNAILS, encode_png, show_samples, thumbnail


def feed_of(*inputs: np.ndarray, dtype: str = "", **form: Any) -> Feed:
    """A feed of arrays [N, ...], each in the same form."""
    samples = Samples(
        "validation", inputs, tuple(f"inputs_{i}" for i in range(len(inputs))),
        tuple(dtype or str(array.dtype) for array in inputs), None, None, None,
    )  # fmt: skip
    return Feed(samples, tuple(InputForm(torch.float32, **form) for _ in inputs), {}, "cpu")


def seen(encoded: str | None) -> np.ndarray:
    """The pixels that another program sees, [H, W] or [H, W, 3]."""
    assert encoded is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_loses_nothing(channels: int) -> None:
    pixels = noise(7, 5, channels)
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    assert np.array_equal(decoded.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_seen_as_they_are(channels: int, nhwc: bool) -> None:
    stored = noise(4, 9, 11, channels)
    array = stored if nhwc else stored.transpose(0, 3, 1, 2)
    feed = feed_of(array, scale=IMAGE_SCALE, mean=(0.5,), std=(0.2,), channels_last=nhwc)
    assert np.array_equal(seen(thumbnail(feed, 2)).reshape(9, 11, channels), stored[2])


def test_the_requests_scale_says_what_is_bright() -> None:
    stored = np.full((1, 1, 8, 8), 16, np.uint8)
    stored[0, 0, 0, 0] = 8
    pixels = seen(thumbnail(feed_of(stored, scale=1 / 16), 0))
    assert (pixels[0, 0], pixels[1, 1]) == (128, 255)


def test_normalized_floats_are_stretched() -> None:
    stored = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    pixels = seen(thumbnail(feed_of(stored), 0))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.all(np.diff(pixels.reshape(-1).astype(int)) >= 0)


def test_bfloat16_bits_are_values() -> None:
    values = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    feed = feed_of(values.view(torch.int16).numpy().view(np.uint16), dtype="bfloat16", bfloat16_bits=True)
    wanted = (values[0].permute(1, 2, 0).float() * 255).round().numpy()
    assert np.abs(seen(thumbnail(feed, 0)).astype(float) - wanted).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_number_is_no_error(value: float) -> None:
    stored = np.zeros((1, 3, 8, 8), np.float32)
    stored[0, 0, 0, 0] = value
    assert seen(thumbnail(feed_of(stored), 0)).shape == (8, 8, 3)


@pytest.mark.parametrize(("height", "width", "shape"), [(640, 320, (64, 32)), (70, 71, (63, 64)), (4, 4000, (1, 64))])
def test_large_images_become_small(height: int, width: int, shape: tuple[int, int]) -> None:
    stored = np.full((1, height, width, 3), 200, np.uint8)
    pixels = seen(thumbnail(feed_of(stored, scale=IMAGE_SCALE, channels_last=True), 0))
    assert pixels.shape == (*shape, 3)
    assert max(pixels.shape) <= MAX_SIDE
    assert np.all(pixels == 200)


@pytest.mark.parametrize("shape", [(2, 10), (2, 5, 7), (2, 2, 8, 8), (2, 3, 2, 8), (2, 3, 4, 8, 8), (2,)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert thumbnail(feed_of(noise(*shape)), 0) is None


def test_the_first_image_is_taken() -> None:
    image = noise(2, 1, 8, 8)
    feed = feed_of(noise(2, 5), image, scale=IMAGE_SCALE)
    assert np.array_equal(seen(thumbnail(feed, 1)), image[1, 0])


def changed(samples: int) -> AccuracySection:
    """An accuracy section in which so many samples changed sides."""
    listed = tuple(
        ChangedSample(row=row, target=1, original=1, pruned=2, change="right_to_wrong") for row in range(samples)
    )
    return AccuracySection(
        metric="accuracy", samples=100, original=0.9, pruned=0.8, delta=-0.1, interval=(-0.2, 0.0),
        interval_method="tango", confidence_level=0.95, mcnemar_p=None, right_to_wrong=samples, wrong_to_right=0,
        loss=PairedNumber(), churn=ChurnSection(right_to_wrong=tuple(range(samples)), samples=listed),
    )  # fmt: skip


def test_the_worst_samples_get_pictures() -> None:
    images = noise(20, 3, 8, 8)
    churn = show_samples(changed(20), feed_of(images, scale=IMAGE_SCALE), include_samples=True).churn
    assert churn is not None
    assert [sample.row for sample in churn.samples] == list(range(20))
    assert [sample.thumbnail is not None for sample in churn.samples] == [True] * MAX_THUMBNAILS + [False] * 8
    assert np.array_equal(seen(churn.samples[3].thumbnail), images[3].transpose(1, 2, 0))


def test_samples_stay_out_where_the_caller_says_so() -> None:
    churn = show_samples(changed(5), feed_of(noise(5, 3, 8, 8)), include_samples=False).churn
    assert churn is not None
    assert churn.samples == ()
    assert churn.right_to_wrong == (0, 1, 2, 3, 4)


def test_without_churn_nothing_happens() -> None:
    accuracy = AccuracySection(
        **{**{f: getattr(changed(1), f) for f in AccuracySection.__struct_fields__}, "churn": None}
    )
    assert show_samples(accuracy, feed_of(noise(1, 3, 8, 8)), include_samples=True) is accuracy


@pytest.mark.parametrize("include_samples", [True, False])
def test_a_job_shows_samples_unless_told_not_to(include_samples: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
    images = noise(120, 8, 8, 3)
    with torch.no_grad():
        labels = net(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    spec = make_spec(
        sparsity(0.8),
        recovery=Recovery(disabled=True),
        preprocessing=Preprocessing(layout=Layout.NHWC),
        evaluation=Evaluation(include_samples=include_samples),
    )
    root = make_workspace(tmp_path / "run", torch.jit.script(net), {"inputs": images, "targets": labels}, spec)
    churn = run_here(root).report["accuracy"]["churn"]
    assert churn["right_to_wrong"]
    assert bool(churn["samples"]) is include_samples
    for sample in churn["samples"][:MAX_THUMBNAILS]:
        assert np.array_equal(seen(sample["thumbnail"]), images[sample["row"]])
        assert sample["target"] == labels[sample["row"]]
