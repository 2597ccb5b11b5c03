"""Inputs to observe a model with: as asked for, as its archive remembers them, or inferred from its first weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pruning_server.archive.traced_inputs import ExampleValue
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.graph.entries import attends, find_first_uses
from pruning_server.graph.modules import StateGuard
from pruning_server.graph.training import thaw
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.inspection import TensorSpec
from pruning_server.spec.request import DynamicAxes, Preprocessing, ScalarArgument
from pruning_server.worker.calling import floating_dtype, forward_arguments
from pruning_server.worker.feeding import Feed, Lengths, Samples, place_arguments, stretch
from pruning_server.worker.forms import candidate_forms
from pruning_server.worker.inspection import batch_size_of
from pruning_server.worker.inspection_guesses import Argument, candidates_of, combinations
from pruning_server.worker.running import all_tensors
from pruning_server.worker.sizes import settle_sizes, why_unlike

SEED = 0
SAMPLES = 2
_MAX_QUOTED = 240

Inputs = tuple[object, ...]


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
            InvalidRequestError: it takes none (`samples`), or a scalar leaves a hole before it (`arguments`).
        """
        scalars = {one.position: one.scalar for one in self.arguments if one.scalar is not None}
        total = len(scalars) + len(samples.inputs)
        if any(position >= total for position in scalars):
            text = f"with {len(samples.inputs)} inputs in the dataset, positions run from 0 to {total - 1}"
            raise _refused(text, "arguments")
        first: Exception | None = None
        for forms in candidate_forms(samples.inputs, samples.input_dtypes, Preprocessing(), self._dtype):
            feed = Feed(samples, forms, scalars, "cpu")
            for count in dict.fromkeys((min(SAMPLES, len(samples)), 1)):
                inputs = feed.inputs(range(count))
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
        for specs in combinations(
            [candidates_of(one, tensors, self._dtype, sequences=self._sequences) for one in tensors]
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

    def resized(self, inputs: Inputs, dynamic: Sequence[DynamicAxes]) -> tuple[list[Inputs], tuple[str, ...]]:
        """The same samples at other lengths of these axes, where the model takes them, and what people should know.

        Raises:
            InvalidRequestError: an axis that the inputs do not have (`dynamic_axes`).
        """
        places = [place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)]
        shapes = {number: tuple(_tensor(inputs[place]).shape) for number, place in enumerate(places)}
        axes = [(one.input, axis) for one in dynamic for axis in one.axes]
        for position, axis in axes:
            if axis >= len(shapes.get(position, ())):
                shown = ", ".join("x".join(map(str, shape)) for shape in shapes.values())
                raise _refused(f"there is no axis {axis} of input {position}; the inputs are {shown}", "dynamic_axes")

        def stretched(lengths: Lengths) -> Inputs:
            values = list(inputs)
            for position, axis, length in lengths:
                values[places[position]] = stretch(_tensor(values[places[position]]), axis, length)
            return tuple(values)

        def error(lengths: Lengths) -> str | None:
            found = self._run(stretched(lengths))
            return _quoted(found) if isinstance(found, Exception) else why_unlike(own, found, samples)

        first, samples = self._run(inputs) if axes else [], batch_size_of(inputs)
        own = [] if isinstance(first, Exception) else first
        if not own:
            return [], ()
        found = settle_sizes(axes, {axis: shapes[axis[0]][axis[1]] for axis in axes}, error)
        return [stretched(lengths) for lengths in found.found], found.notes

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
        found = self._run(inputs)
        return found if isinstance(found, Exception) else None

    def _run(self, inputs: Inputs) -> list[torch.Tensor] | Exception:
        """The tensors that the model returns, or what it raises."""
        torch.manual_seed(SEED)
        try:
            with torch.no_grad(), self._state:
                return all_tensors(self._module(*inputs))
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            return error

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


def _tensor(value: object) -> torch.Tensor:
    """Of a position that is known to hold one."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{type(value).__name__} is no tensor")
    return value


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


def _quoted(error: BaseException) -> str:
    text = last_line(error)
    text = text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + " [...]"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _refused(text: str, field: str = "inputs", reason: Reason = Reason.MODEL_INPUT_MISMATCH) -> InvalidRequestError:
    return InvalidRequestError.for_field(field, text, reason)
