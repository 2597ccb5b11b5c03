"""Follows what linear ops give for as long as it stays affine in them: through normalization and sums, up to a ReLU.

Reconstruction fits a kernel where its result matters: at the end of its chain, which is the sum of a residual block or
the input of a ReLU rather than the convolution's own output.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pruning_server.graph import ir
from pruning_server.graph.capture import LinearCall, Watching
from pruning_server.graph.execution import Executor
from pruning_server.graph.program import Step, compile_graph
from pruning_server.graph.slots import find_places
from pruning_server.graph.state import StateGuard

_NORMALIZATIONS = frozenset({"aten::batch_norm"})
_SUMS = frozenset({"aten::add", "aten::add_"})
_RECTIFIERS = frozenset({"aten::relu", "aten::relu_"})
_DROPOUTS = frozenset({"aten::dropout", "aten::dropout_", "aten::feature_dropout", "aten::alpha_dropout"})


class LinkKind(enum.StrEnum):
    """What a link of a chain is."""

    CALL = "call"  # the linear op itself
    NORM = "norm"  # normalization by stored statistics
    SUM = "sum"  # with a value of the same shape
    RECTIFIER = "rectifier"  # about to be rectified; the end of every chain


@dataclass(eq=False)
class Link:
    """One value that is affine, channel by channel, in the result of a linear op.

    Attributes:
        weight: the op's stored kernel; its first name.
        call: the number of the op's run, from 0; later ones have larger numbers.
        kind: how the value came about.
        channel_axis: of the value.
        scale: [out] what the op's result was multiplied with on its way; None: 1.
        mean: dotted name of the running mean that a normalization subtracted last, if it is stored.
        before: the link that it was made of; None of a CALL.
        uses: how many ops took the value, as far as the run has come.
    """

    weight: str
    call: int
    kind: LinkKind
    channel_axis: int
    scale: torch.Tensor | None = None
    mean: str | None = None
    before: Link | None = None
    uses: int = 0


class Visitor(Protocol):
    """Hears of a run. Values may be changed in place: what follows computes with what they became."""

    def linear(self, call: LinearCall, link: Link) -> None:
        """A linear op has run; `call.output` is the link's value."""
        ...

    def follow(self, link: Link, value: torch.Tensor) -> None:
        """A further link of a chain: the result of a normalization or sum, or what a rectifier is about to take."""
        ...

    def other_use(self, weight: str) -> None:
        """An op took a stored tensor; linear ops that were visited report their kernels too."""
        ...


class ChainRun:
    """Runs forward of one module and follows chains; the code is prepared once.

    Args:
        module: a loaded module, thawed where it was frozen, in evaluation mode.
        guard: of the module, where one exists already.
    """

    def __init__(self, module: torch.jit.ScriptModule, guard: StateGuard | None = None) -> None:
        self._module = module
        self._guard = guard or StateGuard(module)
        self._method = compile_graph(ir.inlined_copy(module, "forward"))

    def run(self, inputs: Sequence[object], visitor: Visitor) -> Any:
        """One run without gradients; the module's state is put back.

        Raises:
            TypeError: too few arguments.
            RuntimeError: whatever the model raises, or a node that cannot be executed.
        """
        places = find_places(self._module)
        with torch.no_grad(), self._guard:
            domain = _Following(places.slots.values(), visitor)
            return Executor(self._module, domain, places).run(self._method, "forward", inputs)


class _Following(Watching):
    """Knows of every living tensor which link it is."""

    def __init__(self, slots: Collection[Any], visitor: Visitor) -> None:
        super().__init__(slots, self._linear, None)
        self._visitor = visitor
        self._links: dict[int, tuple[weakref.ref[torch.Tensor], Link]] = {}
        self._calls = 0
        self._rules: dict[str, Callable[[Sequence[Any], Sequence[Any]], None]] = {
            **dict.fromkeys(_NORMALIZATIONS, self._normalized),
            **dict.fromkeys(_SUMS, self._summed),
            **dict.fromkeys(_DROPOUTS, self._dropped),
        }

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        self._count(inputs)
        if step.op in _RECTIFIERS:
            self._rectified(inputs[0])
        # An op in place gives its input another meaning.
        taken = [self._link(value) for value in inputs]
        results = super().apply(step, inputs)
        rule = self._rules.get(step.op)
        if rule is not None:
            self._taken = taken
            rule(inputs, results)
        elif step.writes:
            self._forget([inputs[position] for position in step.writes])
        return results

    def touch(self, step: Step, inputs: Sequence[Any]) -> None:
        self._count(inputs)
        super().touch(step, inputs)

    def _count(self, inputs: Sequence[Any]) -> None:
        for value in inputs:
            if isinstance(value, list | tuple):
                self._count(value)
            elif isinstance(value, torch.Tensor):
                link = self._link(value)
                if link is not None:
                    link.uses += 1
                else:
                    slot = self._stored(value)
                    if slot is not None:
                        self._visitor.other_use(slot.name)

    def _link(self, value: Any) -> Link | None:
        found = self._links.get(id(value)) if isinstance(value, torch.Tensor) else None
        return found[1] if found is not None and found[0]() is value else None

    def _hold(self, value: torch.Tensor, link: Link) -> None:
        self._links[id(value)] = (weakref.ref(value), link)

    def _forget(self, values: Sequence[Any]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                self._links.pop(id(value), None)

    def _linear(self, call: LinearCall) -> None:
        axis = call.output.dim() - 1 - (len(call.geometry.stride) if call.geometry else 0)
        link = Link(call.weight, self._calls, LinkKind.CALL, axis)
        self._calls += 1
        self._hold(call.output, link)
        self._visitor.linear(call, link)

    def _normalized(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        link, (_, weight, _, mean, variance, training, _, epsilon) = self._taken[0], inputs[:8]
        stored = self._stored(mean) if mean is not None else None
        plain = link is not None and link.kind is LinkKind.CALL and link.channel_axis == 1
        if not plain or link is None or training or mean is None or variance is None:
            return
        scale = (variance + epsilon).rsqrt() if weight is None else weight * (variance + epsilon).rsqrt()
        name = stored.name if stored is not None and stored.tensor.shape == mean.shape else None
        self._extend(results[0], Link(link.weight, link.call, LinkKind.NORM, 1, scale, name, link))

    def _summed(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        result = results[0]
        self._forget([result])
        alike = [isinstance(one, torch.Tensor) and one.shape == result.shape for one in inputs[:2]]
        # Of two chains that meet, the one that began last can still make up for the other.
        links = [one for one in self._taken[:2] if one is not None]
        if not all(alike) or not links or (len(inputs) > 2 and inputs[2] != 1):
            return
        last = max(links, key=lambda one: one.call)
        self._extend(result, Link(last.weight, last.call, LinkKind.SUM, last.channel_axis, last.scale, last.mean, last))

    def _dropped(self, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        link = self._taken[0]
        if link is not None and not inputs[2]:
            link.uses -= 1
            self._hold(results[0], link)

    def _rectified(self, value: Any) -> None:
        link = self._link(value)
        if link is not None:
            last = Link(link.weight, link.call, LinkKind.RECTIFIER, link.channel_axis, link.scale, link.mean, link)
            self._visitor.follow(last, value)

    def _extend(self, value: torch.Tensor, link: Link) -> None:
        self._hold(value, link)
        self._visitor.follow(link, value)
