"""Results that nothing depends on are found through tuples, branches and loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers import zoo
from pruning_server.graph import ir
from pruning_server.graph.liveness import Liveness
from pruning_server.graph.program import all_steps, compile_graph


class Pairs(nn.Module):
    """Gives pairs in branches, of which the second halves are not used; counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def pair(self, x: Tensor, swapped: bool) -> tuple[Tensor, Tensor]:
        if swapped:
            return x.exp(), x.tan()
        return x.sin(), x.tanh()

    def forward(self, x: Tensor, swapped: bool, rounds: int) -> Tensor:
        first = self.pair(x, swapped)[0]
        second, _unused = self.pair(x, swapped)
        self.calls.add_(x.floor().sum())  # an effect
        y = x.abs()
        for _ in range(rounds):
            y = y.sqrt()
        if bool((x.ceil() > 0).all()):  # a condition
            first = first + second
        return first + y


def test_what_is_not_returned_is_unused() -> None:
    # Held while its nodes are asked.
    method = compile_graph(ir.inlined_copy(zoo.scripted(Pairs()), "forward"))
    liveness = Liveness(method.program)
    unused: dict[str, set[bool]] = {}
    for step in all_steps(method.program):
        if len(step.outputs) == 1:
            unused.setdefault(step.op, set()).add(bool(liveness.unused(step)))
    for op in ("tan", "tanh"):
        assert unused[f"aten::{op}"] == {True}
    for op in ("exp", "sin", "floor", "sum", "abs", "sqrt", "ceil", "all"):
        assert unused[f"aten::{op}"] == {False}, op


def test_a_tuple_that_is_returned_is_used_whole() -> None:
    class Both(Pairs):
        def forward(self, x: Tensor, swapped: bool) -> tuple[Tensor, Tensor]:
            return self.pair(x, swapped)

    method = compile_graph(ir.inlined_copy(zoo.scripted(Both()), "forward"))
    liveness = Liveness(method.program)
    assert not any(liveness.unused(step) for step in all_steps(method.program) if step.op.startswith("aten::"))
