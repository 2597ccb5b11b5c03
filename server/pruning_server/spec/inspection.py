"""What InspectModel is asked and what it answers, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod

from pruning_server.spec.base import Value
from pruning_server.spec.problems import Problem, invalid
from pruning_server.spec.request import ArtifactRef, DynamicAxes, ScalarArgument
from pruning_server.spec.validation_data import MAX_INPUT_AXES, MAX_INPUTS, find_axes_problems

# As torch names them; those that a random tensor can be made of.
INPUT_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
# 1 GiB of float32: a tensor that is made up on request must not cost a machine.
MAX_INPUT_ELEMENTS = 2**28


class TensorSpec(Value, frozen=True, kw_only=True):
    """Shape and dtype (as torch names it) of an input."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        """As `--input` takes it."""
        return f"{'x'.join(map(str, self.shape))}:{self.dtype}"


class LayerInspection(Value, frozen=True, kw_only=True):
    """A layer with parameters.

    Attributes:
        name: the path of its module; the tensor's own name where the model itself holds it.
        kind: conv, linear, embedding, recurrent, norm, bias, or other.
        shape: of its largest kernel.
        parameters: number of its trainable values; tied ones count where they are first.
        macs: multiply-accumulates per sample.
        group_indices: positions in `Inspection.groups` of the channels that it takes part in.
        min_parameter_ratio: the smallest share of its parameters that could remain, in [0, 1].
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    group_indices: tuple[int, ...]
    min_parameter_ratio: float


class GroupInspection(Value, frozen=True, kw_only=True):
    """Channels that are alike, each of which can be removed only together with what belongs to it in all the layers."""

    channels: int
    layers: tuple[str, ...]


class FrozenInspection(Value, frozen=True, kw_only=True):
    """Why some channels of these layers must stay: the op, where it stands in the model's code, the reason."""

    op: str
    source: str
    reason: str
    layers: tuple[str, ...]


class Inspection(Value, frozen=True, kw_only=True):
    """What could be pruned in a model, what is frozen, the inputs that it was observed with, what people should know."""

    inputs: tuple[TensorSpec, ...]
    layers: tuple[LayerInspection, ...]
    groups: tuple[GroupInspection, ...]
    frozen: tuple[FrozenInspection, ...]
    notes: tuple[str, ...] = ()


class InspectionRequest(Value, frozen=True, kw_only=True):
    """A model, and what to run it with: a dataset, shapes in the order of the arguments, or neither.

    `dynamic_axes`: axes of these inputs that may have any length.
    """

    model: ArtifactRef
    samples: ArtifactRef | None = None
    inputs: tuple[TensorSpec, ...] = ()
    arguments: tuple[ScalarArgument, ...] = ()
    dynamic_axes: tuple[DynamicAxes, ...] = ()


def find_inspection_problems(request: InspectionRequest) -> Iterator[Problem]:
    """Everything that is wrong with the request itself."""
    if request.samples is not None and request.inputs:
        yield invalid("inputs", "either samples or shapes of inputs can be given, not both; leave one out")
    if len(request.inputs) > MAX_INPUTS:
        yield invalid("inputs", f"at most {MAX_INPUTS} inputs can be given, the request has {len(request.inputs)}")
    for index, given in enumerate(request.inputs[:MAX_INPUTS]):
        why = why_unusable(given)
        if why is not None:
            yield invalid(f"inputs[{index}]", why)
    for position, count in Counter(argument.position for argument in request.arguments).items():
        if count > 1:
            yield invalid("arguments", f"position {position} is given {count} times")
    yield from find_axes_problems("dynamic_axes", request.dynamic_axes)


def why_unusable(given: TensorSpec) -> str | None:
    """Why no tensor can be made of a spec; None where one can."""
    if given.dtype not in INPUT_DTYPES:
        return f"the dtype must be one of {', '.join(INPUT_DTYPES)}, not {given.dtype!r}"
    if len(given.shape) > MAX_INPUT_AXES or not all(size >= 1 for size in given.shape):
        return f"the shape must have at most {MAX_INPUT_AXES} axes, each of at least 1"
    if prod(given.shape) > MAX_INPUT_ELEMENTS:
        return f"the shape has more than {MAX_INPUT_ELEMENTS} elements; a smaller one shows the same"
    return None
