"""Dynamic schedules beside one-shot pruning at the same multiply-accumulates (or zeros), epochs and data.

Whole jobs on a convolutional net for digits (scikit-learn's 8 x 8 scans), or with `--net resnet20` on the maintainers'
CIFAR net. Judged on images that the job never saw. Printed per seed, then means and differences to one-shot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from helpers.runs import make_spec, make_workspace, run_here
from pruning_server.spec.request import (
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Layout,
    Preprocessing,
    Scope,
    StaticStrategy,
    Strategy,
    Target,
    TargetKind,
)

SCHEDULES = ("controller", "cubic", "rigl", "soft")
# The controller has to reach the target that one-shot is given, whatever it costs on the way.
ANY_LOSS = Evaluation(margin=0.99)


@dataclass(frozen=True)
class Case:
    """A trained net, the caller's set, and images to judge on."""

    net: nn.Module
    data: dict[str, np.ndarray]
    judge: Callable[[torch.jit.ScriptModule], float]
    fields: dict[str, Any]


class DigitsNet(nn.Module):
    """[N, 1, 8, 8] in, [N, 10] logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 48, 3, padding=1, stride=2), nn.BatchNorm2d(48)
        self.conv3, self.bn3 = nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.linear = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.linear(x.mean(dim=[2, 3]))


def digits(seed: int) -> Case:
    """600 scans train the net, 500 are the caller's, 697 judge."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    inputs = (images[order].reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    targets = labels[order].astype(np.int64)
    torch.manual_seed(seed)
    net = DigitsNet()
    x, y = torch.from_numpy(inputs[:600]), torch.from_numpy(targets[:600])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(30):
        for rows in torch.randperm(600).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    def judge(model: torch.jit.ScriptModule) -> float:
        return accuracy(model.eval(), torch.from_numpy(inputs[1100:]), targets[1100:])

    return Case(net.eval(), {"inputs": inputs[600:1100], "targets": targets[600:1100]}, judge, {})


def resnet20(seed: int) -> Case:
    """1,000 CIFAR images, drawn by the seed from the first 5,000, are the caller's; the last 5,000 judge."""
    from helpers.resnet import MEAN, STD, trained_resnet
    from helpers.shared_data import shared_file

    with np.load(shared_file("cifar10_test.npz")) as data:
        images, labels = data["images"], data["labels"]
    rows = np.random.default_rng(seed).permutation(5000)[:1000]
    mean, std = (torch.tensor(one).reshape(1, 3, 1, 1) for one in (MEAN, STD))
    held = (torch.from_numpy(images[5000:]).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def judge(model: torch.jit.ScriptModule) -> float:
        return accuracy(model.eval(), held, labels[5000:])

    fields = {"preprocessing": Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC)}
    return Case(trained_resnet(20), {"inputs": images[rows], "targets": labels[rows]}, judge, fields)


def accuracy(model: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, targets: np.ndarray) -> float:
    """Share of right answers, in percent."""
    with torch.no_grad():
        found = torch.cat([model(part).argmax(dim=1) for part in inputs.split(500)]).numpy()
    return 100 * float((found == targets).mean())


NETS: dict[str, Callable[[int], Case]] = {"digits": digits, "resnet20": resnet20}


def run(case: Case, strategy: Strategy, target: Target, epochs: int, seed: int) -> tuple[float, float, float, float]:
    """One job: accuracy in percent on unseen images, MACs after / before, sparsity, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        spec = make_spec(
            target, strategy=strategy, fine_tune=FineTune(epochs=epochs), evaluation=ANY_LOSS, seed=seed, **case.fields
        )
        started = time.perf_counter()
        ran = run_here(make_workspace(Path(folder) / "run", torch.jit.script(case.net), case.data, spec))
        seconds = time.perf_counter() - started
        report = ran.report
        macs = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
        return case.judge(ran.pruned), macs, report["strategy"]["achieved_sparsity"], seconds


def main() -> None:
    """Prints one line per job and the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=tuple(NETS), default="digits")
    parser.add_argument("--granularity", choices=("channel", "weight"), default="channel")
    parser.add_argument("--target", type=float, default=0.25, help="MACs that remain, or weights that go")
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--schedules", nargs="*", default=SCHEDULES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    granularity = Granularity(options.granularity)
    kind = TargetKind.MACS_RATIO if granularity is Granularity.CHANNEL else TargetKind.SPARSITY
    target = Target(kind=kind, value=options.target)
    # What requests get that leave it open.
    scope = Scope.SENSITIVITY if granularity is Granularity.CHANNEL else Scope.GLOBAL
    once = StaticStrategy(granularity=granularity, criterion=options.criterion, scope=scope)
    strategies: dict[str, Strategy] = {"one-shot": once}
    strategies |= {
        name: DynamicStrategy(granularity=granularity, schedule=name, criterion=options.criterion, scope=scope)
        for name in options.schedules
    }
    found: dict[str, list[float]] = {name: [] for name in strategies}
    print(f"{options.net}, {granularity.value}, {kind.value} {target.value:g}, {options.epochs} epochs")
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        case = NETS[options.net](seed)
        print(f"seed {seed}: original {case.judge(torch.jit.script(case.net)):.2f}", flush=True)
        for name, strategy in strategies.items():
            score, macs, sparsity, seconds = run(case, strategy, target, options.epochs, seed)
            found[name].append(score)
            print(f"  {name:10s} {score:6.2f}  macs {macs:.3f}  off {sparsity:.3f}  {seconds:5.1f} s", flush=True)
    print("schedule    mean   minus one-shot, per seed")
    for name, scores in found.items():
        differences = [mine - once for mine, once in zip(scores, found["one-shot"], strict=True)]
        shown = " ".join(f"{one:+.2f}" for one in differences)
        print(f"{name:10s} {np.mean(scores):6.2f}  {shown}  mean {np.mean(differences):+.2f}")


if __name__ == "__main__":
    main()
