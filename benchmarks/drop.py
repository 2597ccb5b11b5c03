"""What max_accuracy_drop 0.02 promises and keeps: 20 caller's sets each for the CIFAR ResNets, judged on images nobody saw.

Run by `make bench-drop`; `NETS=20 SETS=5 make bench-drop` runs less. Each caller's set is 5,000 of the 10,000 labelled images,
drawn anew, with 200 of them for the report; the job prunes channels with closed-form recovery only and delivers the smallest
model that it can promise a drop of 0.02 for, or declines. The drop that counts is measured on the other 5,000 images: it may
be above 0.02 in 1 of 20.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helpers.resnet import MEAN, STD, trained_resnet
from helpers.runs import make_spec, make_workspace, run_here
from helpers.shared_data import SHARED_DATA
from pruning_server.jobs.events import RunSucceeded
from pruning_server.spec.request import FineTune, Granularity, Preprocessing, StaticStrategy, Target, TargetKind

MAX_DROP, PROMISE = 0.02, 0.95
SET_SAMPLES, SELECT_SAMPLES, REPORT_SAMPLES = 5_000, 400, 200


@dataclass(frozen=True)
class Row:
    """One set: MACs after / before, the promised bound and the true drop; all None where the job declined."""

    ratio: float | None
    promised: float | None
    drop: float | None
    seconds: float


def main() -> int:
    """Prints a line per set; 1 if the promise was broken too often, or nothing was ever pruned."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    depths = [int(depth) for depth in os.environ.get("NETS", "20,56").split(",")]
    return max([_bench(depth, int(os.environ.get("SETS", "20"))) for depth in depths])


def _bench(depth: int, sets: int) -> int:
    data = np.load(SHARED_DATA / "cifar10_test.npz")
    images, labels = np.ascontiguousarray(data["images"].transpose(0, 3, 1, 2)), data["labels"]
    model = torch.jit.script(trained_resnet(depth))
    right = _right(model, images, labels)
    print(f"ResNet-{depth}: {right.mean():.4f} right on all images", flush=True)
    rows = []
    for seed in range(sets):
        order = np.random.default_rng(seed).permutation(len(images))
        mine, unseen = order[:SET_SAMPLES], order[SET_SAMPLES:]
        rows.append(_run(model, images, labels, right, mine, unseen, seed))
        row = rows[-1]
        told = (
            "declined"
            if row.ratio is None
            else f"MACs {row.ratio:.3f}, promised {row.promised:.4f}, true {row.drop:+.4f}"
        )
        print(f"  set {seed}: {told} ({row.seconds:.0f} s)", flush=True)
    return _conclude(depth, rows)


def _conclude(depth: int, rows: list[Row]) -> int:
    kept = [row for row in rows if row.ratio is not None and row.drop is not None]
    broken = sum(row.drop is not None and row.drop > MAX_DROP for row in kept)
    print(f"ResNet-{depth}: {len(rows) - len(kept)} of {len(rows)} declined, {broken} above {MAX_DROP}", end="")
    if kept:
        ratios = [row.ratio for row in kept if row.ratio is not None]
        drops = [row.drop for row in kept if row.drop is not None]
        print(f"; MACs {statistics.fmean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})", end="")
        print(f"; true drop {statistics.fmean(drops):+.4f}, at most {max(drops):+.4f}", end="")
    print(flush=True)
    return 0 if kept and broken <= math.floor((1 - PROMISE) * len(rows) + 1e-9) else 1


def _run(
    model: torch.jit.ScriptModule,
    images: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    mine: np.ndarray,
    unseen: np.ndarray,
    seed: int,
) -> Row:
    marks = np.zeros(len(mine), np.uint8)
    marks[-SELECT_SAMPLES - REPORT_SAMPLES : -REPORT_SAMPLES], marks[-REPORT_SAMPLES:] = 1, 2
    spec = make_spec(
        Target(kind=TargetKind.MAX_ACCURACY_DROP, value=MAX_DROP),
        strategy=StaticStrategy(granularity=Granularity.CHANNEL),
        fine_tune=FineTune(epochs=0),
        preprocessing=Preprocessing(mean=MEAN, std=STD),
        seed=seed,
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"inputs": images[mine], "targets": labels[mine], "split": marks}
        ran = run_here(make_workspace(Path(folder) / "run", model, arrays, spec))
        seconds = time.perf_counter() - started
        if not isinstance(ran.last, RunSucceeded):
            return Row(None, None, None, seconds)
        report = ran.report
        after = _right(ran.pruned, images[unseen], labels[unseen])
    ratio = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
    return Row(ratio, report["strategy"]["details"]["upper"], float((right[unseen] - after).mean()), seconds)


def _right(model: torch.jit.ScriptModule, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    model.eval()
    classes = []
    with torch.no_grad():
        for start in range(0, len(images), 250):
            batch = torch.from_numpy(images[start : start + 250]).float() / 255
            classes.append(model((batch - mean) / std).argmax(dim=1).numpy())
    return (np.concatenate(classes) == labels).astype(np.float64)


if __name__ == "__main__":
    sys.exit(main())
