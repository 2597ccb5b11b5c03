"""Makes the reports that the page is tested with: real jobs on real data through a real server.

    PYTHONPATH=tests python tests/client/reports/make_reports.py [NAME ...]

Run it again where the report has changed; without names, all of them (a quarter of an hour on two cores). `resnet20` needs
the maintainers' data folder. `picture` takes the README's picture of its page, in Chromium.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

from helpers.browser import Browser, Shown
from helpers.resnet import MEAN, STD, trained_resnet
from helpers.running_server import RunningServer
from helpers.shared_data import shared_file
from pruning_client import (
    Conditional,
    Dynamic,
    MacsRatio,
    PruningClient,
    Risk,
    Sparsity,
    Static,
    Submission,
)
from pruning_client.html.page import render_page
from pruning_client.spec import Granularity, Layout, Preprocessing, Task

REPORTS = Path(__file__).resolve().parent
CIFAR_IMAGES = 2000
SEED = 0


def _train(net: nn.Module, inputs: np.ndarray, targets: np.ndarray, epochs: int) -> nn.Module:
    """Trains on inputs [N, ...]; integer targets are classes, others values."""
    torch.manual_seed(SEED)
    x, y = torch.from_numpy(inputs).float(), torch.from_numpy(targets)
    loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 1, 8, 8] uint8, 0 to 16, and labels [1797], shuffled."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    return digits.images[order].astype(np.uint8)[:, None], digits.target[order].astype(np.int64)


def _conv_net() -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip


def _mlp(inputs: int, outputs: int, hidden: int = 64) -> nn.Module:
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def _save(folder: Path, net: nn.Module, **sets: dict[str, np.ndarray]) -> Submission:
    model = folder / "model.pt"
    torch.jit.script(net).save(str(model))
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    train = folder / "train.npz" if "train" in sets else None
    return Submission(model=model, validation=folder / "validation.npz", train=train, strategy=Static(), seed=SEED)


def resnet20(folder: Path) -> Submission:
    """CIFAR images, NHWC as they are stored; half of the multiplications."""
    with np.load(shared_file("cifar10_test.npz")) as data:
        sets = {"inputs": data["images"][:CIFAR_IMAGES], "targets": data["labels"][:CIFAR_IMAGES]}
    return replace(
        _save(folder, trained_resnet(20), validation=sets),
        strategy=Static(granularity=Granularity.CHANNEL),
        target=MacsRatio(0.5),
        preprocessing=Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC),
    )


def _digits_submission(folder: Path) -> Submission:
    images, labels = _digits()
    net = _train(_conv_net(), images[:800] / 16, labels[:800], epochs=12)
    train, held = ({"inputs": images[part], "targets": labels[part]} for part in (slice(800), slice(800, None)))
    submission = _save(folder, net, train=train, validation=held)
    return replace(submission, preprocessing=Preprocessing(scale=1 / 16), margin=0.03)


def digits(folder: Path) -> Submission:
    """Channels of a small net on digits, with its training set."""
    return replace(_digits_submission(folder), strategy=Static(granularity=Granularity.CHANNEL), target=MacsRatio(0.5))


def weights(folder: Path) -> Submission:
    """Single weights: no proof, as nothing is cut."""
    return replace(_digits_submission(folder), target=Sparsity(0.8))


def fail(folder: Path) -> Submission:
    """Too much is cut, and nothing won back."""
    return replace(
        _digits_submission(folder),
        strategy=Static(granularity=Granularity.CHANNEL),
        target=MacsRatio(0.1),
        recovery=False,
    )


def inconclusive(folder: Path) -> Submission:
    """So few samples that nothing can be told."""
    submission = _digits_submission(folder)
    with np.load(submission.validation) as data:
        few = {name: data[name][:120] for name in data}
    np.savez(folder / "validation.npz", **few)
    return replace(submission, strategy=Static(granularity=Granularity.CHANNEL), target=MacsRatio(0.5), margin=0.01)


def dynamic(folder: Path) -> Submission:
    """The controller, step by step."""
    return replace(_digits_submission(folder), strategy=Dynamic(schedule="controller"), target=Sparsity(0.8), epochs=6)


def gate(folder: Path) -> Submission:
    """A classifier that answers easy inputs with a part of itself."""
    images, labels = _digits()
    flat = (images.reshape(len(images), 64) / 16).astype(np.float32)
    net = _train(_mlp(64, 10, hidden=512), flat[:800], labels[:800], epochs=15)
    submission = _save(folder, net, validation={"inputs": flat[800:], "targets": labels[800:]})
    strategy = Dynamic(granularity=Granularity.CHANNEL, inference_gate=True)
    return replace(submission, strategy=strategy, target=MacsRatio(0.7), epochs=3, margin=0.03)


def conditional(folder: Path) -> Submission:
    """A condition, with channels merged."""
    submission = _digits_submission(folder)
    return replace(submission, strategy=Conditional(condition='weight_correlation > 0.3 and kind == "conv"'))


def risk(folder: Path) -> Submission:
    """A certificate, and its candidates."""
    strategy = Conditional(risk=Risk(max_loss=0.08, error_probability=0.1))
    return replace(_digits_submission(folder), strategy=strategy, epochs=2)


def regression(folder: Path) -> Submission:
    """A table with values to predict."""
    table = load_diabetes()
    inputs = (table.data * 20).astype(np.float32)
    targets = ((table.target - table.target.mean()) / table.target.std()).astype(np.float32)[:, None]
    net = _train(_mlp(10, 1), inputs[:200], targets[:200], epochs=30)
    submission = _save(folder, net, validation={"inputs": inputs[200:], "targets": targets[200:]})
    return replace(submission, strategy=Static(granularity=Granularity.CHANNEL), target=MacsRatio(0.6), margin=0.05)


def unlabelled(folder: Path) -> Submission:
    """No targets: agreement with the original."""
    submission = _digits_submission(folder)
    with np.load(submission.validation) as data:
        inputs = data["inputs"]
    np.savez(folder / "validation.npz", inputs=inputs)
    strategy = Static(granularity=Granularity.CHANNEL)
    return replace(submission, train=None, strategy=strategy, target=MacsRatio(0.6), task=Task.AGREEMENT)


MADE = (resnet20, digits, weights, fail, inconclusive, dynamic, gate, conditional, risk, regression, unlabelled)
KINDS: dict[str, Callable[[Path], Submission]] = {kind.__name__: kind for kind in MADE}


def _keep(name: str, report: str) -> None:
    """Writes a report without the places of files on this machine, which archives remember."""
    for place in (sys.prefix, str(REPORTS.parents[2])):
        report = report.replace(f"{place}/", "")
    (REPORTS / f"{name}.json").write_text(json.dumps(json.loads(report), separators=(",", ":")) + "\n")


def take_picture(report: Path, picture: Path) -> None:
    """Writes what is seen of a report's page without scrolling, in few colours, to be small."""
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        page = Path(folder) / "page.html"
        page.write_text(render_page(json.loads(report.read_text())), encoding="utf-8")
        seen = browser.open(page, Shown(width=1200, height=1000)).screenshot(full=False)
        Image.open(io.BytesIO(seen)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)


def main(names: list[str]) -> int:
    """Makes the named reports; returns how many jobs failed."""
    failed = 0
    if names == ["picture"]:
        take_picture(REPORTS / "resnet20.json", REPORTS.parents[2] / "docs" / "images" / "report.png")
        return 0
    with (
        tempfile.TemporaryDirectory() as root,
        RunningServer(Path(root) / "data", "--insecure-no-sandbox") as server,
        PruningClient(server.address) as client,
    ):
        for name in names or KINDS:
            folder = Path(root) / name
            folder.mkdir()
            job = client.wait(client.submit(KINDS[name](folder)).job_id)
            print(name, job.state, job.failure or job.result.verdict, flush=True)
            failed += job.result is None
            if job.result is not None:
                client.download_artifact(job.result.report_artifact_id, folder / "report.json")
                _keep(name, (folder / "report.json").read_text())
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
