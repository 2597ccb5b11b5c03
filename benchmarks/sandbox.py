"""What the sandbox costs: the same job inside and outside, in turns, and the time to go in.

Compares CPU time of the worker's process (user and system, from its start to its end), which other load on the machine hardly
touches, beside wall time. Prints JSON.
"""

from __future__ import annotations

import argparse
import compileall
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import pruning_server
from helpers.runs import make_spec, make_workspace, sparsity
from pruning_server.adapters.process import Child, child_environment, python_command
from pruning_server.sandbox.policy import Policy
from pruning_server.spec.request import FineTune, Preprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    # As a server's probe does: nobody can from inside.
    compileall.compile_dir(Path(pruning_server.__file__).parent, quiet=2)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    model = torch.jit.script(net.eval())
    digits = load_digits()
    data = {"inputs": digits.images.astype("uint8")[:, None], "targets": digits.target.astype("int64")}
    spec = make_spec(
        sparsity(0.5), fine_tune=FineTune(epochs=options.epochs), preprocessing=Preprocessing(scale=1 / 16)
    )
    seconds: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    empty: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as root:
        for round_ in range(options.rounds + 1):
            for inside in (False, True) if round_ % 2 else (True, False):
                folder = make_workspace(Path(root) / f"{round_}-{inside}", model, data, spec)
                took = run(folder, inside, "-m", "pruning_server.worker", "run", "--workspace", str(folder))
                nothing = run(folder, inside, "-m", "this.does.not.exist", expected=1)
                if round_:  # the first one reads files from the disk
                    seconds[inside].append(took)
                    empty[inside].append(nothing)
    print(json.dumps({"job": told(seconds), "start only": told(empty), "rounds": options.rounds}, indent=2))


def told(seconds: dict[bool, list[tuple[float, float]]]) -> dict[str, float]:
    """Medians in seconds, and the median over rounds of the ratio inside / outside."""
    found: dict[str, float] = {}
    for index, name in enumerate(("cpu", "wall")):
        for inside, where in ((False, "outside"), (True, "inside")):
            found[f"{name}_{where}_seconds"] = round(statistics.median(pair[index] for pair in seconds[inside]), 3)
        ratios = [b[index] / a[index] for a, b in zip(seconds[False], seconds[True], strict=True)]
        found[f"{name}_ratio"] = round(statistics.median(ratios), 4)
    return found


def run(folder: Path, inside: bool, *arguments: str, expected: int = 0) -> tuple[float, float]:
    """CPU and wall seconds of one child."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with Child(
        python_command(*arguments),
        folder=folder,
        environment=child_environment(home=folder, threads=1, cuda_devices=""),
        events_flag="--events-fd",
        policy=Policy(write=(str(folder),)) if inside else None,
    ) as child:
        while not child.has_exited():
            child.read(0.1)
        child.drain(1.0)
        status = child.finish()
        if status.code != expected:
            raise SystemExit(f"the worker failed: {child.stderr.text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - started


if __name__ == "__main__":
    main()
