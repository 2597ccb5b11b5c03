"""Which calls are compared: `forward` on the samples, and every other method as far as its arguments are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pruning_server.graph import ir
from pruning_server.graph.proof.pair import Call, Story

_FLAGS = (True, False)
_NUMBERS = (0, 1)


def plan_stories(module: ir.Module, samples: Sequence[Call]) -> Mapping[str, tuple[Story, ...]]:
    """The stories of every exported method, by its name; none where nobody knows what it takes.

    A method with samples is called with them. One without arguments, or with a single flag or number, may be a setter:
    it is called, and `forward` after it. Others are offered what `forward` takes.
    """
    forward = [call for call in samples if call.method == "forward"]
    return {
        name: tuple((call,) for call in samples if call.method == name) or tuple(_guesses(module, name, forward[:1]))
        for name in ir.method_names(module)
    }


def _guesses(module: ir.Module, name: str, forward: Sequence[Call]) -> list[Story]:
    wanted = ir.required_types(module, name)
    if not wanted:
        return [(Call(name, ()), *forward)]
    if wanted in {("bool",), ("int",)}:
        values = _FLAGS if wanted == ("bool",) else _NUMBERS
        return [(Call(name, (value,)), *forward) for value in values]
    return [(Call(name, call.arguments),) for call in forward if len(call.arguments) >= len(wanted)]
