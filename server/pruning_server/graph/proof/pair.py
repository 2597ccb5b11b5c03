"""Runs the masked and the shrunk model side by side: the same calls, the same seed, outputs and state compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from pruning_server.graph import ir
from pruning_server.graph.proof.difference import relative_error, tensors_of, value_error
from pruning_server.graph.proof.masked import cuts_by_name, select_kept
from pruning_server.graph.proof.stored import widened
from pruning_server.graph.slots import find_places
from pruning_server.graph.state import StateGuard
from pruning_server.graph.surgery.cut import AxisCut, Cut

# What the TorchScript interpreter and the operators under it raise.
RAISED: tuple[type[Exception], ...] = (
    RuntimeError,
    torch.jit.Error,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
)


@dataclass(frozen=True)
class Call:
    """A method and its positional arguments after self; methods without samples are called with numbers or nothing."""

    method: str
    arguments: tuple[object, ...]


Story: TypeAlias = tuple[Call, ...]
"""Calls one after another on one state, such as a setter and then `forward`."""


class OriginalRaisedError(RuntimeError):
    """The masked model, whose code is the original's, does not take the call."""


class ShrunkRaisedError(RuntimeError):
    """The shrunk model does not take a call that the original takes."""


@dataclass(frozen=True)
class Compared:
    """What one story gave.

    Attributes:
        error: the largest relative difference of outputs and of stored state afterwards.
        scale: the largest absolute value of the masked model's outputs; infinite where one is not finite.
        same_draws: both drew as many random numbers.
    """

    error: float
    scale: float
    same_draws: bool


class Pair:
    """The two models; what calls change of them is put back after each story.

    Args:
        masked: what `mask` left.
        shrunk: what it was given.
        cut: what was removed.
        seed: set before each call.
        dtype: the type that both were adapted to; arguments of narrower ones become it. None: as they are.
    """

    def __init__(
        self, masked: ir.Module, shrunk: ir.Module, cut: Cut, seed: int, *, dtype: torch.dtype | None = None
    ) -> None:
        self.masked = masked
        self.shrunk = shrunk
        self.dtype = dtype
        self._cuts = cuts_by_name(cut)
        self._seed = seed
        self._guards = (StateGuard(masked, analysed=False), StateGuard(shrunk, analysed=False))

    def train(self, mode: bool) -> None:
        """Switches both models between training and evaluation mode."""
        for module in (self.masked, self.shrunk):
            module.train(mode)

    def compare(self, story: Story) -> Compared:
        """Runs a story on both.

        Raises:
            OriginalRaisedError: the masked model raised.
            ShrunkRaisedError: only the shrunk one raised.
        """
        told = self.fitted(story)
        # The fuser and the profiler would compile for a call or two, and say nothing about equality.
        with torch.no_grad(), self._guards[0], self._guards[1], torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            try:
                wanted, drawn = self._run(self.masked, told)
            except RAISED as error:
                raise OriginalRaisedError(str(error) or type(error).__name__) from error
            try:
                got, drawn_by_shrunk = self._run(self.shrunk, told)
            except RAISED as error:
                raise ShrunkRaisedError(str(error) or type(error).__name__) from error
            outputs = value_error(got, wanted)
            state = self._state_error() if outputs < float("inf") else 0.0
        return Compared(max(outputs, state), _scale(wanted), torch.equal(drawn, drawn_by_shrunk))

    def _run(self, module: ir.Module, story: Story) -> tuple[list[object], torch.Tensor]:
        torch.manual_seed(self._seed)
        with created_as(self.dtype):
            results = [call_method(module, call) for call in story]
        return results, _random_state()

    def fitted(self, story: Story) -> Story:
        """The story with its arguments in the type of the models."""
        dtype = self.dtype
        if dtype is None:
            return story
        return tuple(replace(call, arguments=tuple(widened(one, dtype) for one in call.arguments)) for call in story)

    def _state_error(self) -> float:
        """Of buffers and attributes, at kept coordinates."""
        theirs = {slot.name: slot.tensor for slot in find_places(self.shrunk).slots.values()}
        worst = 0.0
        for slot in find_places(self.masked).slots.values():
            if slot.parameter or not slot.tensor.is_floating_point():
                continue
            found, cuts = theirs.get(slot.name), self._cuts.get(slot.name, ())
            if found is None or not _still_fits(slot.tensor, cuts):
                return float("inf")
            worst = max(worst, relative_error([found], [select_kept(slot.tensor, cuts)]))
        return worst


@contextmanager
def created_as(dtype: torch.dtype | None) -> Iterator[None]:
    """The type of tensors that the code creates without naming one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if dtype is None else dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def call_method(module: ir.Module, call: Call) -> Any:
    """Calls a method with copies of its tensors, as a model may write to them."""
    arguments = [one.clone() if isinstance(one, torch.Tensor) else one for one in call.arguments]
    return getattr(module, call.method)(*arguments)


def _still_fits(tensor: torch.Tensor, cuts: Sequence[AxisCut]) -> bool:
    return all(one.axis < tensor.dim() and tensor.shape[one.axis] == one.size for one in cuts)


def _scale(value: object) -> float:
    tensors = [one for one in tensors_of(value) if one.is_floating_point() and one.numel()]
    if any(not bool(torch.isfinite(one).all()) for one in tensors):
        return float("inf")
    return max((float(one.abs().max()) for one in tensors), default=0.0)


def _random_state() -> torch.Tensor:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)
