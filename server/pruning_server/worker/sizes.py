"""A second length of the axes that may have any: the model is observed and proven there too, where it runs there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.request import DynamicAxes
from pruning_server.worker.feeding import Feed, Lengths
from pruning_server.worker.running import CallRule, all_tensors

Axis: TypeAlias = tuple[int, int]
"""An input by its position, and an axis of it."""

# Twice as long, for nets that take whole windows only.
DOUBLED = 0
# The next first, in steps that nets with a few halvings of the size take; then smaller ones, then any.
STEPS = (8, 16, 32, 64, DOUBLED, -8, -16, -32, 4, 2, 1, -4, -2, -1)
# Tries per choice of axes, as a slow model has a minute to be observed in.
MAX_TRIES = 30
# A length that is tried must not cost many times what the samples' own does.
MAX_GROWTH = 4.0
SMALL = 64


@dataclass(frozen=True)
class Sizes:
    """Other lengths at which the model runs, none of them that of the samples, and what people should know."""

    found: tuple[Lengths, ...] = ()
    notes: tuple[str, ...] = ()


def find_sizes(
    module: torch.jit.ScriptModule, feed: Feed, rule: CallRule, dynamic: Sequence[DynamicAxes], rows: int
) -> Sizes:
    """Tries other lengths of the dynamic axes: of all at once, else of each alone.

    Args:
        module: in evaluation mode; its state is put back after every try.
        feed: the caller's samples, which are repeated or cut along these axes.
        rule: how the model is called.
        dynamic: the axes, 0 being the batch.
        rows: how many samples are tried together.

    Raises:
        JobFailureError: an input or axis that the samples do not have (MODEL_INPUT_MISMATCH).
    """
    if not dynamic:
        return Sizes()
    shapes = [tuple(tensor.shape) for tensor in feed.tensors([0])]
    axes = _axes(dynamic, shapes, feed)
    state = StateGuard(module)
    count = rule.exact_batch or rows

    def outputs(lengths: Lengths) -> list[torch.Tensor]:
        torch.manual_seed(rule.seed)
        with torch.no_grad(), state:
            return all_tensors(module(*replace(feed, lengths=lengths).inputs(taken)))

    def error(lengths: Lengths) -> str | None:
        try:
            return why_unlike(own, outputs(lengths), count)
        except MODEL_ERRORS as raised:
            if is_out_of_memory(raised):
                raise
            return last_line(raised)

    taken = [row % len(feed.samples) for row in range(count)]
    own = outputs(())
    return settle_sizes(axes, {axis: shapes[axis[0]][axis[1]] for axis in axes}, error)


def settle_sizes(axes: Sequence[Axis], own: Mapping[Axis, int], error: Callable[[Lengths], str | None]) -> Sizes:
    """The lengths at which `error` says that nothing is raised; `own` are those of the samples."""
    together, why = _first(list(axes), own, error)
    if together is not None:
        return Sizes((together,), (f"Other sizes: observed and proven with {_told(together)} too.",))
    columns = _columns(axes)
    apart = [_first(column, own, error)[0] for column in columns] if len(columns) > 1 else []
    found = tuple(lengths for lengths in apart if lengths is not None)
    left = [column for column, lengths in zip(columns, apart or [None] * len(columns), strict=True) if lengths is None]
    notes = [f"Other sizes: observed and proven with {_told(lengths)} too." for lengths in found]
    if left:
        which = ", ".join(f"axis {axis} of input {position}" for column in left for position, axis in column)
        text = f"Other sizes: the model does not run at any other length of {which} that was tried"
        notes.append(f"{text}, so that nothing is shown there ({why}).")
    return Sizes(found, tuple(notes))


def why_unlike(own: Sequence[torch.Tensor], other: Sequence[torch.Tensor], samples: int) -> str | None:
    """Why outputs at another length are no outputs of the same samples; None where they are.

    A number in the code that fits one size only need not raise at another: a `view(-1, 16, 64)` then mixes the samples.
    """
    if [one.dim() for one in own] != [one.dim() for one in other]:
        return "its outputs have other axes there"
    pairs = [(len(one), len(two)) for one, two in zip(own, other, strict=True) if one.dim()]
    if any(before == samples != after for before, after in pairs):
        return "its outputs have another number of samples there"
    return None


def _axes(dynamic: Sequence[DynamicAxes], shapes: Sequence[tuple[int, ...]], feed: Feed) -> list[Axis]:
    found = []
    for one in dynamic:
        if one.input >= len(shapes):
            text = f"dynamic_axes names input {one.input}; the dataset has {len(shapes)}, counted from 0."
            raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
        rank = len(shapes[one.input])
        for axis in one.axes:
            if axis >= rank:
                name = feed.samples.input_names[one.input]
                text = f"dynamic_axes names axis {axis} of {name}, which is fed with axes 0 to {rank - 1}."
                raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
            found.append((one.input, axis))
    return found


def _columns(axes: Sequence[Axis]) -> list[list[Axis]]:
    """Axes that may have to change together: the first dynamic one of every input, the second of every input, ..."""
    by_input: dict[int, list[Axis]] = {}
    for axis in axes:
        by_input.setdefault(axis[0], []).append(axis)
    most = max(map(len, by_input.values()))
    return [[found[place] for found in by_input.values() if place < len(found)] for place in range(most)]


def _first(
    axes: Sequence[Axis], own: Mapping[Axis, int], error: Callable[[Lengths], str | None]
) -> tuple[Lengths | None, str]:
    """The first candidate that raises nothing, and what the first one raised."""
    why = "there is none"
    for number, lengths in enumerate(_candidates(axes, own)):
        if number == MAX_TRIES:
            break
        raised = error(lengths)
        if raised is None:
            return lengths, ""
        why = why if number else raised
    return None, why


def _candidates(axes: Sequence[Axis], own: Mapping[Axis, int]) -> Iterator[Lengths]:
    """Of each step: by different amounts along each axis first, so that one is not taken for another, then by the same."""
    columns = _columns(axes)
    for step in STEPS:
        for spread in (True, False) if len(columns) > 1 and step != DOUBLED else (False,):
            lengths = tuple(
                (*axis, own[axis] + (step * (place + 1 if spread else 1) or own[axis]))
                for place, column in enumerate(columns)
                for axis in column
            )
            if all(_is_fair(length, own[position, axis]) for position, axis, length in lengths):
                yield lengths


def _is_fair(length: int, own: int) -> bool:
    return 0 < length <= max(MAX_GROWTH * own, SMALL)


def _told(lengths: Lengths) -> str:
    return ", ".join(f"{length} along axis {axis} of input {position}" for position, axis, length in lengths)
