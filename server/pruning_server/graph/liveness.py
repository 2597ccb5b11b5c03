"""Which values of a program anything depends on: its outputs, its effects, or the way that it takes.

Functions return more than their callers use, such as the weights of attention; what becomes of those need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from pruning_server.graph import ir
from pruning_server.graph.program import EFFECTS, Program, Step, all_steps

_ALL = frozenset({-1})
"""Stands for every field of a tuple, and for any other value as a whole."""

_PASSED = frozenset({"prim::unchecked_cast", "prim::unchecked_unwrap_optional", "aten::_unwrap_optional"})


class Liveness:
    """Values of one method that are used, tuples by field.

    Args:
        program: of the method.
    """

    def __init__(self, program: Program) -> None:
        self._makers: dict[int, tuple[Step, int]] = {}
        self._needed: dict[int, frozenset[int]] = {}
        self._waiting: list[tuple[int, frozenset[int]]] = []
        steps = list(all_steps(program))
        for step in steps:
            self._makers.update((number, (step, index)) for index, number in enumerate(step.outputs))
        self._need(program.outputs)
        for step in steps:
            if step.blocks:
                self._need_control(step)
            elif step.op in EFFECTS or step.op == "prim::RaiseException" or step.writes or not step.outputs:
                self._need(step.inputs)
        self._run()

    def unused(self, step: Step) -> frozenset[int]:
        """The positions of a step's results that nothing depends on."""
        return frozenset(index for index, number in enumerate(step.outputs) if number not in self._needed)

    def _need_control(self, step: Step) -> None:
        """Conditions always count; what a loop carries is not told apart."""
        if step.op == "prim::If":
            self._need(step.inputs)
            return
        self._need((*step.inputs, *step.captured))
        for block in step.blocks:
            self._need(block.outputs)

    def _need(self, numbers: Iterable[int], fields: frozenset[int] = _ALL) -> None:
        self._waiting += [(number, fields) for number in numbers]

    def _run(self) -> None:
        while self._waiting:
            number, fields = self._waiting.pop()
            known = self._needed.get(number, frozenset())
            if fields <= known or known == _ALL:
                continue
            self._needed[number] = _ALL if fields == _ALL else known | fields
            if number in self._makers:
                self._trace(*self._makers[number], fields)

    def _trace(self, step: Step, index: int, fields: frozenset[int]) -> None:
        if step.op == "prim::If":
            for block in step.blocks:
                self._need([block.outputs[index]], fields)
        elif step.op == "prim::TupleConstruct":
            self._need(step.inputs if fields == _ALL else [step.inputs[field] for field in fields])
        elif step.op == "prim::TupleUnpack":
            self._need(step.inputs, frozenset({index}))
        elif step.op == "prim::TupleIndex":
            known, field = ir.constant_of(list(step.node.inputs())[1])
            self._need(step.inputs[:1], frozenset({field}) if known and field >= 0 else _ALL)
            self._need(step.inputs[1:])
        elif step.op in _PASSED:
            self._need(step.inputs, fields)
        else:
            self._need(step.inputs)
