"""Small pictures of single samples for the report, from the inputs as they are stored."""

from __future__ import annotations

import base64
import struct
import zlib

import msgspec
import numpy as np
import torch

from pruning_server.spec.report_accuracy import AccuracySection
from pruning_server.worker.datasets import BFLOAT16
from pruning_server.worker.feeding import Feed
from pruning_server.worker.forms import InputForm

MAX_THUMBNAILS = 12
MAX_SIDE = 64
# Narrower arrays are tables with a channel axis.
MIN_SIDE = 4
# So that the distance of two values is finite.
_LARGEST = 1e30
_COLOUR_TYPES = {1: 0, 3: 2}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def show_samples(accuracy: AccuracySection, feed: Feed, *, include_samples: bool) -> AccuracySection:
    """Gives the worst changed samples their pictures, at most `MAX_THUMBNAILS`, or leaves all samples out.

    Args:
        accuracy: with `churn.samples`, worst first; their `row` counts in the set that `feed` reads.
        feed: what the models were judged on.
        include_samples: whether the caller lets single samples into the report.
    """
    churn = accuracy.churn
    if churn is None or not churn.samples:
        return accuracy
    if include_samples:
        pictures = [thumbnail(feed, sample.row) for sample in churn.samples[:MAX_THUMBNAILS]]
        shown = [
            msgspec.structs.replace(sample, thumbnail=picture)
            for sample, picture in zip(churn.samples, pictures, strict=False)
        ]
        samples = (*shown, *churn.samples[len(shown) :])
    else:
        samples = ()
    return msgspec.structs.replace(accuracy, churn=msgspec.structs.replace(churn, samples=samples))


def thumbnail(feed: Feed, row: int) -> str | None:
    """The first input of the row that is an image, as base64 of a PNG of at most `MAX_SIDE` pixels a side.

    An image is [C, H, W], or [H, W, C] where the request says so, with 1 or 3 channels and `MIN_SIDE` pixels a side; None
    where no input is one.
    """
    stored = zip(feed.samples.inputs, feed.samples.input_dtypes, feed.forms, strict=True)
    for array, dtype, form in stored:
        if array.ndim == 4:
            image = _channels_first(array[row], dtype, form)
            if image.shape[0] in _COLOUR_TYPES and min(image.shape[1:]) >= MIN_SIDE:
                return base64.b64encode(encode_png(_visible(_shrunk(image), form))).decode("ascii")
    return None


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of `pixels` [H, W, C] uint8, C = 1 (grey) or 3 (red, green, blue); W3C PNG specification, third edition."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    # Every line starts with the number of its filter; 0: none.
    lines = b"".join(b"\0" + pixels[line].tobytes() for line in range(height))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _channels_first(sample: np.ndarray, dtype: str, form: InputForm) -> np.ndarray:
    """The sample [C, H, W] in float64; what is not finite becomes 0."""
    if dtype == BFLOAT16:
        sample = (sample.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = np.nan_to_num(sample.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(-_LARGEST, _LARGEST)
    return np.moveaxis(values, -1, 0) if form.channels_last else values


def _shrunk(image: np.ndarray) -> np.ndarray:
    """At most `MAX_SIDE` pixels a side, each the mean of what it stands for."""
    longest = max(image.shape[1:])
    if longest <= MAX_SIDE:
        return image
    height, width = (max(1, round(side * MAX_SIDE / longest)) for side in image.shape[1:])
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(image.copy()).unsqueeze(0), (height, width))
    return pooled[0].numpy()


def _visible(image: np.ndarray, form: InputForm) -> np.ndarray:
    """Pixels [H, W, C] uint8. Values that the request's scale takes into [0, 1] are brightness, as are bytes.

    Whatever else they are, such as images stored with mean and deviation removed, is stretched between its extremes.
    """
    scaled = image * form.scale
    low, high = float(image.min()), float(image.max())
    if scaled.min() >= 0 and scaled.max() <= 1:
        brightness = scaled * 255
    elif low >= 0 and high <= 255 and form.scale == 1.0:
        brightness = image
    else:
        brightness = (image - low) / ((high - low) or 1.0) * 255
    return np.ascontiguousarray(np.moveaxis(np.rint(brightness).clip(0, 255).astype(np.uint8), 0, -1))
