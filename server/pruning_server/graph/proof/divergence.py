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
from pruning_server.graph.proof.pair import RAISED, Story
from pruning_server.graph.state import StateGuard

# Surgery inserts a few nodes at a time before one of the original's.
_LOOKAHEAD = 64


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


def first_divergence(
    masked: ir.Module, shrunk: ir.Module, story: Story, tolerance: float, seed: int
) -> Divergence | None:
    """The first op whose outputs have equal shapes in both and differ by more than `tolerance`, or which raises.

    Where channels were removed shapes differ, and nothing can be said; so the op named is the first one at which a
    difference shows. Both modules are left as they were.

    Returns:
        None where no op could be found, or one cannot be executed outside torch's own interpreter.
    """
    theirs, failure = _record(masked, story, seed)
    if failure is not None:
        return None
    ours, failure = _record(shrunk, story, seed)
    position = 0
    for record in ours:
        found = next(
            (at for at in range(position, min(position + _LOOKAHEAD, len(theirs))) if theirs[at].op == record.op), None
        )
        if found is None:
            continue  # inserted by surgery
        position = found + 1
        error = _error(record, theirs[found])
        if not error <= tolerance:
            return Divergence(record.op, record.source, f"its output differs by a relative error of {error:.3g}")
    return failure


def _error(record: _Record, other: _Record) -> float:
    """The largest error of the outputs of equal shape."""
    same = [(a, b) for a, b in zip(record.outputs, other.outputs, strict=False) if a.shape == b.shape]
    return max((relative_error([a], [b]) for a, b in same if a.dtype == b.dtype), default=0.0)


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
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            finding = f"it raises: {lines[-1] if lines else type(error).__name__}"
            step = recorder.last
            return recorder.records, Divergence(step.op, ir.source_of(step.node), finding) if step else Divergence(
                "the call", "", finding
            )
    return recorder.records, None
