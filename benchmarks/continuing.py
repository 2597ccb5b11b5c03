"""Continuing from an earlier job on data that has changed, beside pruning the original afresh on it.

Run by `make bench-continue`. A small convolutional net is trained on 600 of scikit-learn's digits and pruned on 500 others.
Then the images get darker, or most of them are of five of the ten classes, and 300 of those are there to prune with: once
from the original, once continuing, with the same target, schedule, epochs and recovery. Judged on images that no job saw.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.spec.request import DynamicStrategy, FineTune, Granularity, Target, TargetKind

SEEDS = (0, 1, 2)
TARGET = Target(kind=TargetKind.MACS_RATIO, value=0.15)
EPOCHS = 4
TRAINED, EARLIER, LATER = 600, 500, 300
Shift = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class RealClock:
    """Seconds of this machine."""

    def now(self) -> float:
        """Since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Since some moment; runs fast, so that latencies, which are not of interest here, are soon measured."""
        return 40 * time.perf_counter()


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.second, self.other = nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.hidden, self.head = nn.Linear(48 * 4, 96), nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] to [N, 10]."""
        x = torch.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = torch.max_pool2d(torch.relu(self.other(self.second(x))), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def darker(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three fifths of the light, and noise."""
    return (images * 0.6 + random.normal(0, 0.05, images.shape)).astype(np.float32), labels


def five_classes(images: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Nine of ten images are of the classes 5 to 9."""
    rare = np.flatnonzero(labels < 5)
    often = np.flatnonzero(labels >= 5)
    chosen = np.concatenate([often, random.permutation(rare)[: len(often) // 9]])
    chosen = random.permutation(chosen)
    return images[chosen], labels[chosen]


def main() -> int:
    """Prints a line per shift and seed; 1 where continuing is worse on average."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    print(f"digits, {TARGET.kind.value} {TARGET.value:g}, {EPOCHS} epochs; accuracy on new images that no job saw")
    print(
        f"{'shift':>13} {'seed':>5} {'original':>9} {'earlier':>8} {'afresh':>7} {'continued':>10} {'came back':>10}  drifted most"
    )
    lost = 0
    for shift in (darker, five_classes):
        rows = [_row(shift, seed) for seed in SEEDS]
        afresh, continued = (statistics.fmean(row[place] for row in rows) for place in (2, 3))
        print(f"{shift.__name__:>13} {'mean':>5} {'':>9} {'':>8} {afresh:7.2%} {continued:10.2%}")
        lost += continued <= afresh
    return int(lost > 0)


def _row(shift: Shift, seed: int) -> list[float]:
    random = np.random.default_rng(seed)
    digits = load_digits()
    order = random.permutation(len(digits.target))
    images = (digits.images[order] / 16).astype(np.float32)[:, None]
    labels = digits.target[order].astype(np.int64)
    model = train(images[:TRAINED], labels[:TRAINED], seed)
    rest = slice(TRAINED, TRAINED + EARLIER)
    new = shift(images[TRAINED + EARLIER :], labels[TRAINED + EARLIER :], random)
    held = new[0][LATER:], new[1][LATER:]
    data = {"inputs": new[0][:LATER], "targets": new[1][:LATER]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = _job(root / "before", model, {"inputs": images[rest], "targets": labels[rest]}, seed)
        afresh = _job(root / "afresh", model, data, seed)
        after = _job(root / "after", model, data, seed, earlier=before.root)
        told = after.report["strategy"]["continued"]
        row = [accuracy(one, *held) for one in (model, before.pruned, afresh.pruned, after.pruned)]
    moved = [one["name"] for one in told["drift"] if one["drifted"]]
    print(
        f"{shift.__name__:>13} {seed:5d} {row[0]:9.2%} {row[1]:8.2%} {row[2]:7.2%} {row[3]:10.2%} {told['regrown']:10d}  "
        + ", ".join(moved[:3]),
        flush=True,
    )
    return row


def _job(
    root: Path, model: torch.jit.ScriptModule, data: dict[str, np.ndarray], seed: int, earlier: Path | None = None
) -> Ran:
    spec = make_spec(
        TARGET,
        strategy=DynamicStrategy(granularity=Granularity.CHANNEL, schedule="rigl"),
        fine_tune=FineTune(epochs=EPOCHS),
        seed=seed,
    )
    ran = run_here(make_workspace(root, model, data, spec, earlier=earlier), RealClock())
    ran.check()
    return ran


def accuracy(module: torch.jit.ScriptModule, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((module.eval()(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def train(images: np.ndarray, labels: np.ndarray, seed: int) -> torch.jit.ScriptModule:
    """The net, scripted."""
    torch.manual_seed(seed)
    net = Net()
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(15):
        for rows in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return torch.jit.script(net.eval())


if __name__ == "__main__":
    sys.exit(main())
