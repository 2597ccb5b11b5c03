"""What each kind of condition removes of a real model: CIFAR ResNet-20 as TorchScript, without a single gradient step.

Run by `make bench-conditions`; prints the table of docs/conditions.md. The caller's set is the first 1,000 images (700 fit, 250
select, 50 report). The accuracy after closed-form recovery is that on the last 5,000, which no job saw; that before, with the
channels or weights gone and twins merged, is on select.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.resnet import MEAN, STD, trained_resnet
from helpers.runs import Ran, TickingClock, make_spec, make_workspace, run_here
from helpers.shared_data import SHARED_DATA
from pruning_server.jobs.events import RunSucceeded
from pruning_server.spec.condition import natural_granularity
from pruning_server.spec.request import ConditionalStrategy, FineTune, Layout, Preprocessing

CONDITIONS = (
    "abs_weight < 0.5 * layer_std",
    "wald_p > 0.05",
    'weight_correlation > 0.4 and kind == "conv"',
    "activation_correlation > 0.55",
    "redundancy > 0.5",
    "apoz > 0.9",
    "l2 < 1 and sensitivity < 0.3",
    "p_harm < 0.05 and depth > 0.6",
)
MARGIN = 0.05
FIT, SELECT, REPORT, TRUTH = 700, 250, 50, 5000


def main(conditions: tuple[str, ...]) -> int:
    """Prints one row per condition."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    if not (SHARED_DATA / "cifar10_test.npz").is_file():
        print("needs the maintainers' data, which is not part of the repository")
        return 1
    with np.load(SHARED_DATA / "cifar10_test.npz") as data:
        images, labels = data["images"], data["labels"]
    model = torch.jit.script(trained_resnet(20))
    print(f"original: {accuracy(model, images, labels):.3f} on {TRUTH} images that no job saw")
    print("| goes | condition | merged | MACs | before | after | seconds |\n|---|---|---|---|---|---|---|")
    for condition in conditions:
        with tempfile.TemporaryDirectory() as folder:
            print(row(condition, model, images, labels, folder), flush=True)
    return 0


def row(condition: str, model: torch.jit.ScriptModule, images: np.ndarray, labels: np.ndarray, folder: str) -> str:
    """One line of the table."""
    ran, seconds = run(condition, model, images, labels, Path(folder))
    if not isinstance(ran.last, RunSucceeded):
        return f"| `{condition}` | {ran.failure.text} | | | | | |"
    report = ran.report
    details, cost = report["strategy"]["details"], report["cost"]
    share = cost["pruned"]["macs"] / cost["original"]["macs"]
    cells = (
        f"{details['removed']} of {details['candidates']}",
        f"`{condition}`",
        str(details["merged_channels"]),
        f"{share:.2f}",
        before(report),
        f"{accuracy(ran.pruned, images, labels):.3f}",
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def before(report: Any) -> str:
    """The accuracy on select before any recovery; empty where nothing went."""
    rungs = report["strategy"]["recovery"].get("select", ())
    return next((f"{rung['metric']:.3f}" for rung in rungs if rung["name"] == "nothing"), "")


def run(
    condition: str, model: torch.jit.ScriptModule, images: np.ndarray, labels: np.ndarray, folder: Path
) -> tuple[Ran, float]:
    """The job, and how long it took."""
    count = FIT + SELECT + REPORT
    split = np.repeat(np.arange(3, dtype=np.uint8), (FIT, SELECT, REPORT))
    strategy = ConditionalStrategy(condition=condition, granularity=natural_granularity(condition), margin=MARGIN)
    spec = make_spec(
        strategy=strategy,
        fine_tune=FineTune(epochs=0),
        preprocessing=Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC),
    )
    data = {"inputs": images[:count], "targets": labels[:count].astype(np.int64), "split": split}
    root = make_workspace(folder / "run", model, data, spec)
    started = time.perf_counter()
    ran = run_here(root, _Hurried())
    return ran, time.perf_counter() - started


class _Hurried(TickingClock):
    """Lets nobody measure for long: latency is another benchmark's."""

    def monotonic(self) -> float:
        return 20 * super().monotonic()


def accuracy(model: torch.jit.ScriptModule, images: np.ndarray, labels: np.ndarray) -> float:
    """On the last images."""
    pixels = torch.from_numpy(images[-TRUTH:]).permute(0, 3, 1, 2).float() / 255
    inputs = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        found = torch.cat([model.eval()(batch).argmax(dim=1) for batch in inputs.split(250)])
    return float((found.numpy() == labels[-TRUTH:]).mean())


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or CONDITIONS))
