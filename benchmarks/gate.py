"""The inference gate on a net with large linear layers: how much work it skips, and what that is worth at batch 1.

Run by `make bench-gate`. Trains an MLP 64-2048-2048-10 on 600 of scikit-learn's digits, prunes it as a job does with
`inference_gate`, on the other 1,197, and then loads the file with torch alone: latency at batch 1 with the gate and with the
gate held open, in turns, and accuracy, all on the report split, which the job chose nothing on.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.runs import Ran, make_spec, make_workspace, run_here
from pruning_server.spec.request import (
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Target,
    TargetKind,
)

SEEDS = (0, 1, 2)
TRAINED_ON = 600
ROUNDS = 7


class RealClock:
    """Seconds of this machine."""

    def now(self) -> float:
        """Since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Since some moment."""
        return time.perf_counter()


def main() -> int:
    """Prints one line per seed and the mean; 1 if a gate was refused or cost more than 0.5 points."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    print("MLP 64-2048-2048-10, digits; batch 1, one thread; ratios are gated / ungated")
    print(
        f"{'seed':>4} {'skipped':>8} {'latency ratio':>14} {'ungated ms':>11} {'gated ms':>9} {'accuracy ungated':>17} {'gated':>7}"
    )
    rows = [_row(seed) for seed in SEEDS]
    for seed, row in zip(SEEDS, rows, strict=True):
        print(_line(str(seed), row))
    mean = [statistics.fmean(values) for values in zip(*rows, strict=True)]
    print(_line("mean", mean))
    return int(mean[4] - mean[5] > 0.005 or mean[1] >= 1)


def _line(name: str, row: list[float]) -> str:
    skipped, ratio, ungated, gated, accuracy, gated_accuracy = row
    return f"{name:>4} {skipped:8.1%} {ratio:14.3f} {1e3 * ungated:11.3f} {1e3 * gated:9.3f} {accuracy:17.2%} {gated_accuracy:7.2%}"


def _row(seed: int) -> list[float]:
    """Skipped share, latency ratio, seconds ungated and gated, accuracy ungated and gated."""
    images, labels = _digits(seed)
    model = train(images[:TRAINED_ON], labels[:TRAINED_ON], seed)
    held = images[TRAINED_ON:], labels[TRAINED_ON:]
    order = np.arange(len(held[0]))
    split = np.select([order < 840, order < 960], [0, 1], 2).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        ran = prune(Path(folder), model, {"inputs": held[0], "targets": held[1], "split": split}, seed)
        gate = ran.report["strategy"]["gate"]
        if not gate["applied"]:
            sys.exit(f"seed {seed}: no gate: {gate['reason']}")
        ran.check()
        module = ran.pruned.eval()
    return [gate["skipped_share"], *measure(module, held[0][split == 2], held[1][split == 2])]


def prune(root: Path, model: torch.jit.ScriptModule, data: dict[str, np.ndarray], seed: int) -> Ran:
    """A whole run of the job; nothing but the gate is asked for, so that its effect is seen alone."""
    spec = make_spec(
        Target(kind=TargetKind.MACS_RATIO, value=1.0),
        strategy=DynamicStrategy(granularity=Granularity.CHANNEL, inference_gate=True),
        fine_tune=FineTune(epochs=4),
        evaluation=Evaluation(latency_batch_size=1),
        seed=seed,
    )
    return run_here(make_workspace(root / "run", model, data, spec), RealClock())


def measure(module: torch.jit.ScriptModule, inputs: np.ndarray, labels: np.ndarray) -> list[float]:
    """Latency ratio and seconds at batch 1 over all samples, the quickest of several rounds per sample, and accuracies."""
    samples = torch.from_numpy(inputs)
    threshold = module.inference_gate_threshold
    seconds = np.zeros((ROUNDS, 2, len(samples)))
    right = np.zeros((2, len(samples)))
    with torch.no_grad():
        for number in range(-1, ROUNDS):
            for sample in range(len(samples)):
                for which, value in enumerate((math.inf, threshold)):
                    module.inference_gate_threshold = value
                    start = time.perf_counter()
                    output = module(samples[sample : sample + 1])
                    seconds[number, which, sample] = time.perf_counter() - start
                    right[which, sample] = int(output.argmax()) == labels[sample]
    ungated, gated = seconds.min(axis=0).mean(axis=1)
    return [gated / ungated, ungated, gated, *right.mean(axis=1)]


def train(images: np.ndarray, labels: np.ndarray, seed: int) -> torch.jit.ScriptModule:
    """The net, scripted."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )  # fmt: skip
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(12):
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return torch.jit.script(net.eval())


def _digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    return (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)


if __name__ == "__main__":
    sys.exit(main())
