"""Accuracy of pruned models beside Torch-Pruning from the same weights; `make bench-accuracy` writes docs/accuracy.md.

`--models`, `--settings` and `--seeds` choose parts; with `--json` what is measured already is kept and not run again. A
whole run takes hours on two cores; `--quick` tries everything on a few hundred images, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import warnings
from pathlib import Path

import torch

from accuracy.ours import run_ours
from accuracy.peer import run_peer
from accuracy.results import Measured, Results
from accuracy.settings import FEW, MACS_RATIO, PEER_CRITERIA, PEER_MODELS, SETTINGS
from accuracy.table import peer_setting, table, write_page
from accuracy.task import Task, cifar_resnet, digits_net
from helpers.shared_data import SHARED_DATA

TASKS = {"ResNet-20": lambda: cifar_resnet(20), "ResNet-56": lambda: cifar_resnet(56), "digits net": digits_net}
QUICK_CALLER, QUICK_JUDGED = 800, 500


def main() -> int:
    """Measures what is asked for and prints the table; 1 where something misses what it has to come to."""
    options = _options()
    warnings.simplefilter("ignore", DeprecationWarning)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    results = Results(options.json)
    for model in options.models:
        if "ResNet" in model and not SHARED_DATA.is_dir():
            print(f"{model}: left out, as its weights and data are not part of the repository", flush=True)
            continue
        task = _shortened(TASKS[model]()) if options.quick else TASKS[model]()
        for seed in range(options.seeds):
            _measure_ours(task, seed, options, results)
            _measure_peer(task, seed, options, results)
    lines, good = table(results)
    print("\n".join(lines))
    if options.write:
        write_page(options.write, results, FEW, options.threads)
    return 0 if good or options.quick else 1


def _measure_ours(task: Task, seed: int, options: argparse.Namespace, results: Results) -> None:
    for setting in SETTINGS[task.name]:
        if _is_wanted(setting.name, options) and not results.has(task.name, setting.name, seed):
            data = setting.data(task, seed)
            measured = run_ours(task, data, setting.asked, seed, options.threads, setting.timed)
            results.add(task.name, setting.name, seed, measured)
            _tell(task.name, setting.name, seed, measured)


def _measure_peer(task: Task, seed: int, options: argparse.Namespace, results: Results) -> None:
    for criterion in PEER_CRITERIA if task.name in PEER_MODELS else ():
        names = [peer_setting(criterion, tuned) for tuned in (False, True)]
        if _is_wanted(names[0], options) and not results.has(task.name, names[1], seed):
            for name, measured in zip(names, run_peer(task, criterion, MACS_RATIO, seed, options.threads), strict=True):
                results.add(task.name, name, seed, measured)
                _tell(task.name, name, seed, measured)


def _is_wanted(setting: str, options: argparse.Namespace) -> bool:
    return not options.settings or any(text.lower() in setting.lower() for text in options.settings)


def _tell(model: str, setting: str, seed: int, measured: Measured) -> None:
    at = time.strftime("%H:%M:%S")
    more = f", {measured.speed_up:.2f}x faster" if measured.speed_up is not None else ""
    kept = f", {measured.kept}" if measured.kept else ""
    print(
        f"{at} {model}, {setting}, seed {seed}: {measured.accuracy:.2f}{more}, {measured.seconds:.0f} s{kept}",
        flush=True,
    )


def _shortened(task: Task) -> Task:
    return dataclasses.replace(
        task,
        caller={name: values[:QUICK_CALLER] for name, values in task.caller.items()},
        inputs=task.inputs[:QUICK_JUDGED],
        targets=task.targets[:QUICK_JUDGED],
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--settings", nargs="+", help="parts of settings' names as in the table; all where left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file of what is measured; it is read first")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
