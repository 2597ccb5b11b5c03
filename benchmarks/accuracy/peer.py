"""Torch-Pruning (Fang et al. 2023, arXiv:2301.12900) from the same weights and data; it needs the net's source.

As its README has it, with only the classifier ignored, it fails on these nets: of the shortcuts it cannot tell which channels
belong together. So the list of what it must leave alone is written by hand: only the inner widths of the blocks are pruned.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import torch_pruning
from torch import nn

from accuracy.results import Measured
from accuracy.settings import PEER_EPOCHS
from accuracy.speed import speed_up
from accuracy.task import CALLER, Task

LEARNING_RATE, MOMENTUM, BATCH = 0.01, 0.9, 128
SPEED_BATCH = 64
_HALVINGS = 12


def run_peer(task: Task, criterion: str, macs_ratio: float, seed: int, threads: int) -> tuple[Measured, Measured]:
    """Prunes the net to at most `macs_ratio` and fine-tunes it; returns what it is before and after that."""
    torch.manual_seed(seed)
    inputs, targets = _prepared(task)
    start = time.perf_counter()
    source = copy.deepcopy(task.net)
    if criterion == "Taylor":
        _accumulate_gradients(source, inputs, targets)
    pruned = _reach(source, _importance(criterion), macs_ratio, torch.zeros(1, *task.shape))
    seconds = time.perf_counter() - start
    ratio = _macs(pruned, task.shape) / _macs(task.net, task.shape)
    example = torch.randn(SPEED_BATCH, *task.shape, generator=torch.Generator().manual_seed(seed))
    faster = speed_up(torch.jit.script(task.net), torch.jit.script(pruned.eval()), example)
    original = task.accuracy(task.net)
    before = Measured(original, task.accuracy(pruned), seconds, threads, ratio, faster)
    _fine_tune(pruned, inputs, targets, seed)
    seconds = time.perf_counter() - start
    return before, Measured(original, task.accuracy(pruned), seconds, threads, ratio, faster)


def _prepared(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """All of the caller's set, as the net takes it."""
    images = torch.from_numpy(task.caller["inputs"][:CALLER]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.preprocessing.mean, task.preprocessing.std))
    return ((images - mean) / std).contiguous(), torch.from_numpy(task.caller["targets"][:CALLER])


def _importance(criterion: str) -> Callable[..., torch.Tensor]:
    importance = torch_pruning.importance
    found: Callable[..., torch.Tensor] = {
        "L1": lambda: importance.GroupMagnitudeImportance(p=1),
        "L2": lambda: importance.GroupMagnitudeImportance(p=2),
        "Taylor": importance.GroupTaylorImportance,
    }[criterion]()
    return found


def _reach(source: nn.Module, importance: Callable[..., torch.Tensor], goal: float, example: torch.Tensor) -> nn.Module:
    """The largest net of at most that share of the MACs; the peer's own parameter is a share of channels."""
    whole = _macs(source, tuple(example.shape[1:]))
    low, high, best = 0.0, 1.0, None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        pruned = _prune(source, importance, middle, example)
        if _macs(pruned, tuple(example.shape[1:])) > goal * whole:
            low = middle
        else:
            high, best = middle, pruned
    if best is None:
        raise SystemExit("Torch-Pruning does not reach the target")
    return best


def _prune(
    source: nn.Module, importance: Callable[..., torch.Tensor], share: float, example: torch.Tensor
) -> nn.Module:
    net = copy.deepcopy(source)
    for mine, theirs in zip(net.parameters(), source.parameters(), strict=True):
        mine.grad = theirs.grad
    untouched = [layer for name, layer in net.named_modules() if name in {"conv1", "linear"} or name.endswith(".conv2")]
    torch_pruning.pruner.BasePruner(
        net, example, importance=importance, global_pruning=True, pruning_ratio=share, ignored_layers=untouched
    ).step()
    return net


def _macs(net: nn.Module, shape: tuple[int, ...]) -> float:
    return float(torch_pruning.utils.count_ops_and_params(net, torch.zeros(1, *shape))[0])


def _accumulate_gradients(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    for images, labels in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
        nn.functional.cross_entropy(net(images), labels, reduction="sum").div(len(inputs)).backward()


def _fine_tune(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    net.zero_grad()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for _ in range(PEER_EPOCHS):
        net.train()
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    net.eval()
