"""Inputs to observe a model with: as asked for, as its archive remembers them, or inferred from its first weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pruning_server.archive.traced_inputs import ExampleValue
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.graph.entries import FirstUse, attends, find_first_uses
from pruning_server.graph.modules import StateGuard
from pruning_server.graph.training import thaw
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.inspection import TensorSpec
from pruning_server.spec.request import Preprocessing, ScalarArgument
from pruning_server.worker.calling import floating_dtype, forward_arguments
from pruning_server.worker.feeding import Feed, Samples, place_arguments
from pruning_server.worker.forms import candidate_forms
from pruning_server.worker.inspection import batch_size_of

SEED = 0
MAX_ATTEMPTS = 24
SAMPLES = 2
# Image sizes that nets are trained for, the likeliest first.
SPATIAL_SIZES = {
    1: (64, 256, 512, 1024, 16000, 16),
    2: (224, 32, 28, 64, 96, 128, 256, 299, 48, 16, 8),
    3: (32, 64, 16, 96),
}
SEQUENCE = 8
_MAX_QUOTED = 240

Inputs = tuple[object, ...]


@dataclass(frozen=True)
class Argument:
    """One argument of forward, and what is known of it.

    Attributes:
        type_name: as TorchScript writes it.
        uses: the weights that it meets first.
        scalar: what the request gives for it, as forward takes it; None where it gives nothing.
    """

    position: int
    name: str
    type_name: str
    has_default: bool
    uses: tuple[FirstUse, ...]
    scalar: object | None

    @property
    def is_tensor(self) -> bool:
        """Whether it takes one tensor."""
        return self.type_name in ("Tensor", "Optional[Tensor]")

    @property
    def rows(self) -> int | None:
        """Integers must stay below this number; None where they index nothing that is known."""
        return min((use.channels[0] for use in self.uses if use.op == "embedding"), default=None)

    def describe(self) -> str:
        """For messages."""
        if not self.uses:
            return f"{self.name} ({self.type_name})"
        use = self.uses[0]
        shape, count = "x".join(map(str, use.weight)), " or ".join(map(str, use.channels))
        says = {
            "conv": f"[N, {count}, {', '.join('HWD'[: use.spatial_axes])}]"
            if use.spatial_axes > 1
            else f"[N, {count}, L]",
            "linear": f"[..., {count}]",
            "recurrent": f"[..., {count}]",
            "embedding": f"integers below {count}",
        }[use.op]
        return f"{self.name} (first meets a {use.op} weight {shape}: {says})"


class InputFinder:
    """Makes inputs and tries whether `forward` takes them.

    Args:
        module: in evaluation mode; its state is put back after every try.
        scalars: the request's scalar arguments.

    Raises:
        InvalidRequestError: a scalar is at a position that forward does not have (`arguments`).
    """

    def __init__(self, module: torch.jit.ScriptModule, scalars: Sequence[ScalarArgument]) -> None:
        self._module = module
        self._state = StateGuard(module)
        self._dtype = floating_dtype(module)
        self._sequences = attends(module)
        self.arguments = _arguments(module, scalars)

    def given(self, specs: Sequence[TensorSpec]) -> Inputs:
        """Random inputs of the shapes that the request gives.

        Raises:
            InvalidRequestError: their number does not fit, or the model raises (`inputs`).
        """
        tensors = self._needed(len(specs))
        made = {argument.position: _random(spec, argument) for argument, spec in zip(tensors, specs, strict=True)}
        inputs = self._place(made)
        error = self._error(inputs)
        if error is not None:
            fed = ", ".join(map(str, specs)) or "no tensor"
            raise _refused(f"given {fed}, the model raised: {_quoted(error)} {self._advice()}")
        return inputs

    def from_samples(self, samples: Samples) -> Inputs:
        """The first samples of a dataset, in the first form that the model takes.

        Raises:
            InvalidRequestError: it takes none (`samples`).
        """
        scalars = {one.position: one.scalar for one in self.arguments if one.scalar is not None}
        first: Exception | None = None
        for forms in candidate_forms(samples.inputs, samples.input_dtypes, Preprocessing(), self._dtype):
            feed = Feed(samples, forms, scalars, "cpu")
            for count in dict.fromkeys((min(SAMPLES, len(samples)), 1)):
                try:
                    inputs = feed.inputs(range(count))
                except StopIteration:
                    raise _refused("the positions of the scalars leave a hole", "arguments") from None
                error = self._error(inputs)
                if error is None:
                    return inputs
                first = first or error
        said = _quoted(first) if first is not None else "nothing"
        raise _refused(f"fed with the dataset, the model raised: {said} {self._advice()}", "samples")

    def examples(self, values: Sequence[ExampleValue]) -> Inputs | None:
        """Random inputs like those that the model was traced with; None where it does not take them."""
        if len(values) > len(self.arguments):
            return None
        made: dict[int, object] = {}
        for argument, value in zip(self.arguments, values, strict=False):
            if argument.scalar is None:
                made[argument.position] = _random(value, argument) if isinstance(value, TensorSpec) else value
        inputs = self._place(made)
        return inputs if self._error(inputs) is None else None

    def inferred(self) -> Inputs:
        """Random inputs of shapes that the first weights suggest.

        Raises:
            InvalidRequestError: an argument is neither a tensor nor given (`arguments`), or the model raises whatever
                is tried (`inputs`).
        """
        tensors = self._needed(None)
        tried: list[tuple[str, Exception]] = []
        for specs in _combinations(
            [_candidates(one, tensors, self._dtype, sequences=self._sequences) for one in tensors]
        ):
            made = {one.position: _random(spec, one) for one, spec in zip(tensors, specs, strict=True)}
            inputs = self._place(made)
            error = self._error(inputs)
            if error is None:
                return inputs
            tried.append((", ".join(map(str, specs)), error))
        last = f"{len(tried)} guesses failed; with {tried[0][0] or 'no input'} it raised: {_quoted(tried[0][1])} "
        raise _refused(f"the model's inputs cannot be inferred: {last}{self._advice()}")

    def doubled(self, inputs: Inputs) -> Inputs | None:
        """The same samples twice; None where the model does not take them."""
        rows = batch_size_of(inputs)
        twice = tuple(
            torch.cat([value, value])
            if isinstance(value, torch.Tensor) and value.dim() and len(value) == rows
            else value
            for value in inputs
        )
        return twice if self._error(twice) is None else None

    def _needed(self, given: int | None) -> list[Argument]:
        """The arguments that tensors are made for, the first `given` of them; None: those without a default."""
        free = [one for one in self.arguments if one.scalar is None]
        wanted = free[:given] if given is not None else [one for one in free if not one.has_default]
        if given is not None and given > len(free):
            raise _refused(f"forward takes {len(free)} more inputs, {given} are given. {self._advice()}")
        left = free[len(wanted) :] if given is not None else []
        missing = [one for one in (*wanted, *left) if not one.is_tensor and not one.has_default]
        scalars = [one for one in missing if one.type_name in ("int", "float", "bool", "str", "number")]
        if scalars:
            which = ", ".join(f"{one.name} ({one.type_name}) with --arg {one.position}=VALUE" for one in scalars)
            raise _refused(f"forward needs {which}", "arguments", Reason.MISSING_FIELD)
        if missing:
            which = ", ".join(f"{one.name} ({one.type_name})" for one in missing)
            raise _refused(f"forward takes {which}; only tensors and scalars can be given", "model")
        lacking = [one.name for one in left if not one.has_default]
        if lacking:
            raise _refused(f"nothing is given for {', '.join(lacking)}. {self._advice()}")
        return wanted

    def _place(self, made: Mapping[int, object]) -> Inputs:
        scalars = {one.position: one.scalar for one in self.arguments if one.scalar is not None}
        values = {**scalars, **made}
        count = max(values, default=-1) + 1
        # A default between two given arguments is passed as it is.
        defaults = {position: self._default(position) for position in range(count) if position not in values}
        return place_arguments((), {**defaults, **values})

    def _default(self, position: int) -> object:
        declared: Any = forward_arguments(self._module)[position]
        return declared.default_value

    def _error(self, inputs: Inputs) -> Exception | None:
        """What the model raises, if anything."""
        torch.manual_seed(SEED)
        try:
            with torch.no_grad(), self._state:
                self._module(*inputs)
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            return error
        return None

    def _advice(self) -> str:
        tensors = [one for one in self.arguments if one.scalar is None and (one.is_tensor or not one.has_default)]
        known = "; ".join(one.describe() for one in tensors) or "nothing"
        return f"Forward takes: {known}. Give each tensor with --input, e.g. --input 1x3x64x64 or --input 1x16:int64."


def _arguments(module: torch.jit.ScriptModule, scalars: Sequence[ScalarArgument]) -> tuple[Argument, ...]:
    declared = forward_arguments(module)
    uses = find_first_uses(thaw(module))
    given = {scalar.position: scalar.value for scalar in scalars}
    beyond = sorted(position for position in given if position >= len(declared))
    if beyond:
        names = ", ".join(f"{one.name} ({one.type})" for one in declared) or "nothing"
        raise _refused(f"there is no argument at position {beyond[0]}; forward takes {names}", "arguments")
    return tuple(
        Argument(
            position=position,
            name=str(one.name),
            type_name=str(one.type),
            has_default=bool(one.has_default_value()),
            uses=uses[position] if position < len(uses) else (),
            scalar=_scalar(given[position], str(one.type)) if position in given else None,
        )
        for position, one in enumerate(declared)
    )


def _scalar(value: object, type_name: str) -> object:
    """As forward declares it: traced models take numbers as tensors."""
    if "Tensor" in type_name and not isinstance(value, str):
        return torch.tensor(value)
    return float(value) if type_name == "float" and type(value) is int else value


def _random(spec: TensorSpec, argument: Argument) -> torch.Tensor:
    """The same values for the same spec."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    generator = torch.Generator().manual_seed(SEED + argument.position)
    if dtype is torch.bool:
        return torch.ones(spec.shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.rand(spec.shape, generator=generator).to(dtype)
    # What is no index is most often a mask.
    high = min(argument.rows or 2, int(torch.iinfo(dtype).max))
    return torch.randint(0, high, spec.shape, generator=generator).to(dtype)


def _candidates(
    argument: Argument, others: Sequence[Argument], floating: torch.dtype, *, sequences: bool
) -> list[TensorSpec]:
    """Shapes to try for an argument, the likeliest first."""
    dtype = str(floating).removeprefix("torch.")
    found: list[tuple[tuple[int, ...], str]] = []
    for use in argument.uses[:2]:
        found += _suggested(use, dtype, sequences=sequences or use.op == "recurrent")
    if not found and any(use.op == "embedding" for other in others for use in other.uses):
        found = [((1, SEQUENCE), "int64"), ((1, SEQUENCE), dtype), ((1, SEQUENCE), "bool")]
    if not found:
        found = [((1, 3, 32, 32), dtype), ((1, 16), dtype), ((1,), dtype), ((1, SEQUENCE), "int64")]
    return [TensorSpec(shape=shape, dtype=name) for shape, name in dict.fromkeys(found)]


def _suggested(use: FirstUse, dtype: str, *, sequences: bool) -> Iterator[tuple[tuple[int, ...], str]]:
    if use.op == "embedding":
        yield from (((1, length), "int64") for length in (SEQUENCE, 16, 32))
        yield (SEQUENCE,), "int64"
    elif use.op == "conv":
        for size in SPATIAL_SIZES.get(use.spatial_axes, ()):
            yield (1, use.channels[0], *(size,) * use.spatial_axes), dtype
        # Some nets add the axis of the only channel themselves.
        for size in SPATIAL_SIZES.get(use.spatial_axes, ()) if use.channels == (1,) else ():
            yield (1, *(size,) * use.spatial_axes), dtype
    else:
        for channels in use.channels:
            shapes: list[tuple[int, ...]] = [(1, channels), (1, SEQUENCE, channels)]
            yield from ((shape, dtype) for shape in (reversed(shapes) if sequences else shapes))
            # Pixels that are flattened on the way.
            side = round(channels**0.5)
            if side > 1 and side * side == channels:
                yield (1, 1, side, side), dtype


def _combinations(candidates: Sequence[Sequence[TensorSpec]]) -> Iterator[tuple[TensorSpec, ...]]:
    """At most `MAX_ATTEMPTS` choices of one per argument, the likeliest first."""
    places = list(itertools.islice(itertools.product(*(range(len(one)) for one in candidates)), 4096))
    places.sort(key=lambda chosen: (sum(chosen), chosen))
    for chosen in places[:MAX_ATTEMPTS]:
        yield tuple(one[place] for one, place in zip(candidates, chosen, strict=True))


def _quoted(error: BaseException) -> str:
    text = last_line(error)
    text = text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + " [...]"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _refused(text: str, field: str = "inputs", reason: Reason = Reason.MODEL_INPUT_MISMATCH) -> InvalidRequestError:
    return InvalidRequestError.for_field(field, text, reason)
