"""What values are while a graph is executed, and what ops do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pruning_server.graph import ir
from pruning_server.graph.program import Program, Step
from pruning_server.graph.slots import Path


class _Unset:
    """What a function that has not returned yet would return; nothing looks at it."""


UNSET = _Unset()
_FROM_LISTS = frozenset({"aten::tensor", "aten::as_tensor"})


class ModelRaisedError(RuntimeError):
    """The model's own code raised an exception; the message is the model's."""


class UnsupportedNodeError(RuntimeError):
    """A node that cannot be executed outside torch's own interpreter."""


class EndlessLoopError(RuntimeError):
    """Code that is only explored goes round and round."""


@dataclass(frozen=True)
class ModuleRef:
    """A submodule as a value: where it was found, and itself."""

    path: Path
    module: ir.Module


@dataclass
class Instance:
    """An object of a TorchScript class that the code creates."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredInstance:
    """An instance of a TorchScript class, or a container of some, that a module holds; read where it is looked into."""

    module: ir.Module
    way: tuple[ir.Turn, ...]

    def follow(self, step: Step, name: str | None, key: object = None) -> Any:
        """What an attribute or a key of it is.

        Raises:
            UnsupportedNodeError: a tensor, which could not be cut there.
        """
        kind = step.node.output().type()
        way = (*self.way, ir.Turn(name, key, kind))
        if ir.holds_instances(kind):
            return StoredInstance(self.module, way)
        value = ir.read_along(self.module, way)
        if isinstance(value, torch.Tensor):
            raise UnsupportedNodeError(f"an instance of a TorchScript class holds a tensor, '{name or key}'")
        return value


class Domain:
    """What values are and what ops do with them. This one: tensors and numbers as they are.

    Attributes:
        explores: branches that a run does not take are run too, where that has no effects, and merged.
        exploring: how many such branches deep the run is at this moment.
        explored_rounds: rounds of loops so far in the outermost of them.
        varying: whether the op that runs takes a number that may be another one in another run.
    """

    explores = False
    exploring = 0
    explored_rounds = 0
    varying = False

    def constant(self, step: Step, value: Any) -> Any:
        """A constant of the graph as a value."""
        del step
        return value

    def attribute(self, step: Step, path: Path, value: Any) -> Any:
        """A stored tensor, number or container as a value."""
        del step, path
        return value

    def assign(self, step: Step, path: Path, value: Any) -> Any:
        """What is to be stored when the code sets the attribute under `path` to a value."""
        del step, path
        return value

    def plain(self, value: Any) -> Any:
        """The tensor, number or container that a value stands for."""
        return value

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs an op."""
        return call_operator(step, inputs)

    def touch(self, step: Step, inputs: Sequence[Any]) -> None:
        """A part of the language that works on a list or dict is about to run."""

    def control(self, step: Step, position: int, value: Any) -> Any:
        """A condition or trip count as the executor needs it."""
        del step, position
        return value

    def repeat(self, step: Step, before: Sequence[Any], after: Sequence[Any]) -> None:
        """A loop whose number of rounds may differ in another run turned `before` into `after` in one round."""

    def merge(self, step: Step, taken: Sequence[Any], other: Sequence[Any]) -> None:
        """Another run may take the other branch, which gives `other` in the place of `taken`."""

    def skip(self, step: Step, block: Program, captured: Sequence[Any], results: Sequence[Any]) -> None:
        """Another run may enter `block`, which this one did not: it reads `captured` and would replace `results`."""


def call_operator(step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
    """Calls a node's op with plain values and returns its results.

    Raises:
        UnsupportedNodeError: the node is no op that Python can call.
    """
    operator = ir.operator_of(step.node)
    if operator is None or (step.writes_container and step.on_container):
        where = ir.source_of(step.node)
        raise UnsupportedNodeError(f"{step.op} cannot be executed on its own ({where or 'no source line'})")
    if step.op in _FROM_LISTS and isinstance(inputs[0], list):
        return [_tensor_of_list(*inputs[:3])]
    keywords = dict(zip(operator.keywords, inputs[operator.positional :], strict=True))
    result = operator.call(*inputs[: operator.positional], **keywords)
    if operator.results == 1:
        return [result]
    return list(result) if operator.results else []


def _tensor_of_list(elements: list[Any], dtype: int | None, device: Any) -> torch.Tensor:
    """`tensor` and `as_tensor` of a list of any depth, whose type Python cannot tell torch."""
    tensor = torch.tensor(elements, device=device)
    if dtype is None:
        return tensor
    converted: torch.Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype)
    return converted
