"""Where two models part: both are executed op by op, and the first op that gives something else is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pruning_server.graph import ir
from pruning_server.graph.domain import Domain
from pruning_server.graph.execution import Executor
from pruning_server.graph.program import Step, compile_graph
from pruning_server.graph.proof.difference import relative_error
from pruning_server.graph.proof.pair import RAISED, Pair, Story, created_as
from pruning_server.graph.state import StateGuard

# Surgery inserts a few nodes at a time before one of the original's.
_LOOKAHEAD = 64
# Slices are compared one by one.
_MOST_SLICES = 4096


@dataclass(frozen=True)
class Divergence:
    """An op of the shrunk model, the line of code that it stands on ("" where unknown), and what is wrong with it."""

    op: str
    source: str
    finding: str

    def __str__(self) -> str:
        return f"{self.op} ({self.source or 'no source line'}): {self.finding}"


@dataclass(frozen=True)
class _Record:
    """One execution of an op that gave tensors."""

    op: str
    source: str
    outputs: tuple[torch.Tensor, ...]


class _Recorder(Domain):
    """Keeps copies of what ops give, since later ones may write to it; `last` is the op that runs."""

    def __init__(self) -> None:
        self.records: list[_Record] = []
        self.last: Step | None = None

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs an op and keeps its tensors."""
        self.last = step
        results = super().apply(step, inputs)
        outputs = tuple(one.detach().clone() for one in _tensors(results))
        if outputs:
            self.records.append(_Record(step.op, ir.source_of(step.node), outputs))
        return results


def _tensors(results: Sequence[Any]) -> Iterator[torch.Tensor]:
    for result in results:
        if isinstance(result, torch.Tensor):
            yield result
        elif isinstance(result, list | tuple):
            yield from _tensors(result)


def first_divergence(pair: Pair, story: Story, tolerance: float, seed: int) -> Divergence | None:
    """The first op whose outputs differ by more than `tolerance`, or which raises in the shrunk model only.

    Where channels were removed along one axis, those that are left must be among the masked model's, in its order;
    where several axes differ nothing can be said. Both modules are left as they were.

    Returns:
        None where no op could be found, or one cannot be executed outside torch's own interpreter.
    """
    told = pair.fitted(story)
    with created_as(pair.dtype):
        theirs, failure = _record(pair.masked, told, seed)
        if failure is not None:
            return None
        ours, failure = _record(pair.shrunk, told, seed)
    position = 0
    for record in ours:
        found = next(
            (at for at in range(position, min(position + _LOOKAHEAD, len(theirs))) if theirs[at].op == record.op), None
        )
        if found is None:
            continue  # inserted by surgery
        position = found + 1
        error = _error(record, theirs[found], tolerance)
        if not error <= tolerance:
            return Divergence(record.op, record.source, f"its output differs by a relative error of {error:.3g}")
    return failure


def _error(record: _Record, other: _Record, tolerance: float) -> float:
    """The largest error of the outputs, as far as they can be compared."""
    errors = [
        relative_error([a], [b]) if a.shape == b.shape else _subset_error(a, b, tolerance)
        for a, b in zip(record.outputs, other.outputs, strict=False)
        if a.dtype == b.dtype
    ]
    return max(errors, default=0.0)


def _subset_error(small: torch.Tensor, full: torch.Tensor, tolerance: float) -> float:
    """How far the slices along the one axis that was cut are from being some of the full tensor's, in its order."""
    if small.dim() != full.dim() or not small.is_floating_point() or small.is_quantized:
        return 0.0
    axes = [axis for axis in range(small.dim()) if small.shape[axis] != full.shape[axis]]
    if len(axes) != 1 or small.shape[axes[0]] > min(full.shape[axes[0]], _MOST_SLICES):
        return 0.0
    parts = small.double().movedim(axes[0], 0).flatten(1)
    whole = full.double().movedim(axes[0], 0).flatten(1)
    if not parts.numel() or not bool(torch.isfinite(whole).all()):
        return 0.0
    scale = max(float(whole.abs().max()), torch.finfo(torch.float32).tiny)
    start = 0
    for part in parts:
        errors = (whole[start:] - part).abs().amax(1) / scale
        matching = (errors <= tolerance).nonzero()
        if not len(matching):
            return float(errors.min()) if len(errors) else float("inf")
        start += int(matching[0]) + 1
    return 0.0


def floating_types(pair: Pair, story: Story, seed: int) -> frozenset[torch.dtype]:
    """The floating-point types in which a story computes; empty where it cannot be executed op by op."""
    with created_as(pair.dtype):
        records, failure = _record(pair.masked, pair.fitted(story), seed)
    if failure is not None:
        return frozenset()
    return frozenset(one.dtype for record in records for one in record.outputs if one.is_floating_point())


def _record(module: ir.Module, story: Story, seed: int) -> tuple[list[_Record], Divergence | None]:
    """What the ops of a story gave, and the op that raised, if any."""
    recorder = _Recorder()
    torch.manual_seed(seed)
    with torch.no_grad(), StateGuard(module):
        try:
            for call in story:
                method = compile_graph(ir.inlined_copy(module, call.method))
                arguments = [one.clone() if isinstance(one, torch.Tensor) else one for one in call.arguments]
                Executor(module, recorder).run(method, call.method, arguments)
        except RAISED as error:
            return recorder.records, _raising(recorder.last, error)
    return recorder.records, None


def _raising(step: Step | None, error: Exception) -> Divergence:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    finding = f"it raises: {lines[-1] if lines else type(error).__name__}"
    return Divergence(step.op, ir.source_of(step.node), finding) if step else Divergence("the call", "", finding)
