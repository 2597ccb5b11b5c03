"""Stored tensors with an element for every coordinate of every axis; tensors on the same memory share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph import ir
from pruning_server.graph.channels import Cause, Channels, Ids
from pruning_server.graph.coupling.values import Labelled, Maps, single
from pruning_server.graph.program import Method, all_steps
from pruning_server.graph.slots import MemoryGroup, Path, Places, group_by_memory
from pruning_server.graph.survey import model_order


@dataclass(frozen=True, eq=False)
class Leaf:
    """One stored tensor.

    Attributes:
        name: dotted path, parameters' names first; for a constant of the code, where it stands.
        aliases: further names of the same memory.
        tensor: the tensor as stored.
        lines: elements per axis; None for an axis of length 1, and for all where the tensor cannot be cut.
    """

    name: str
    aliases: tuple[str, ...]
    tensor: torch.Tensor
    lines: tuple[Ids | None, ...]

    @property
    def maps(self) -> Maps:
        """The labels of the whole tensor."""
        found: Maps = ()
        for axis, line in enumerate(self.lines):
            found += single(line, axis, len(self.lines)) if line is not None else ()
        return found


@dataclass(frozen=True, eq=False)
class Baked:
    """A floating-point tensor in the code: the nodes that give it, on the same memory."""

    tensor: torch.Tensor
    nodes: tuple[ir.Node, ...]


def enumerate_constants(methods: Iterable[Method]) -> tuple[Baked, ...]:
    """Tensors in the code of all methods, by first use: the N-th is `constant N`, the same in every load.

    Saving moves constants about, and ops not.
    """
    found: dict[object, list[tuple[torch.Tensor, ir.Node]]] = {}
    for method in methods:
        for node in _constants_by_use(method):
            tensor = ir.constant_tensor(node)
            if tensor is not None and _is_cuttable(tensor):
                found.setdefault(_memory_key(tensor), []).append((tensor, node))
    return tuple(Baked(uses[0][0], tuple(node for _, node in uses)) for uses in found.values())


def _constants_by_use(method: Method) -> Iterator[ir.Node]:
    steps = list(all_steps(method.program))
    constants = {step.outputs[0]: step.node for step in steps if step.op == "prim::Constant"}
    used = (number for step in steps for number in step.inputs if number in constants)
    for number in dict.fromkeys((*used, *constants)):
        yield constants[number]


def _is_cuttable(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and tensor.layout is torch.strided


def _memory_key(tensor: torch.Tensor) -> object:
    place = (str(tensor.device), tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tuple(tensor.shape), tensor.stride())


def constant_name(number: int) -> str:
    """The name of the N-th tensor in the code."""
    return f"constant {number}"


class Leaves:
    """All stored tensors of a module, and the floating-point tensors in its code."""

    def __init__(self, places: Places, constants: Sequence[Baked], channels: Channels) -> None:
        self._channels = channels
        self._slots = places.slots
        self._by_path: dict[Path, Leaf] = {}
        self._numbers = {id(node): number for number, baked in enumerate(constants) for node in baked.nodes}
        self._unmet = set(self._numbers)
        self._read: set[int] = set()
        for group in group_by_memory(model_order(places)):
            leaf = self._create(group)
            self._by_path.update((slot.path, leaf) for slot in group.slots)
        self._constants = [
            Leaf(constant_name(number), (), baked.tensor, self._lines(baked.tensor))
            for number, baked in enumerate(constants)
        ]

    def __iter__(self) -> Iterator[Leaf]:
        """Every leaf once, in the model's order, constants last."""
        return iter(dict.fromkeys((*self._by_path.values(), *self._constants)))

    def read(self, path: Path, value: torch.Tensor) -> Labelled:
        """What reading an attribute, or an element of one, gives."""
        leaf = self._by_path.get(path)
        if leaf is None:
            return Labelled(value, (), stored=True)
        self._read.add(id(leaf))
        if value.shape != leaf.tensor.shape:
            self.freeze(leaf, Cause("prim::GetAttr", "", "the model replaces it by a tensor of another shape"))
            return Labelled(value, (), stored=True)
        return Labelled(value, leaf.maps, stored=True)

    def constant(self, node: ir.Node, value: torch.Tensor) -> Labelled:
        """What a constant of the code gives; one of code that cannot be edited carries no labels."""
        number = self._numbers.get(id(node))
        if number is None:
            return Labelled(value, (), stored=True)
        self._unmet.discard(id(node))
        leaf = self._constants[number]
        self._read.add(id(leaf))
        return Labelled(value, leaf.maps, stored=True)

    def under(self, path: Path) -> list[Leaf]:
        """The leaves that an attribute holds: itself, or what is in its lists, tuples and dicts."""
        return [leaf for found, leaf in self._by_path.items() if found[: len(path)] == path]

    def freeze(self, leaf: Leaf, cause: Cause) -> None:
        """Keeps all axes of a stored tensor as they are."""
        for line in leaf.lines:
            if line is not None:
                self._channels.freeze(line, cause)

    def freeze_unread(self) -> None:
        """What no run has read may be used by code that was not reached."""
        cause = Cause("", "", "no run with the given samples used it")
        for leaf in self:
            if id(leaf) not in self._read:
                self.freeze(leaf, cause)
        for node in self._unmet:
            self.freeze(self._constants[self._numbers[node]], cause)

    def freeze_indivisible(self) -> None:
        """An axis whose coordinates can only go all at once stays, since nothing would be left."""
        for leaf in self:
            for line in leaf.lines:
                if line is not None and not self._channels.varying_axes(line):
                    reason = "all channels could only be removed together, and one must stay"
                    self._channels.freeze(line, Cause("", "", reason))

    def _create(self, group: MemoryGroup) -> Leaf:
        tensor = group.main.tensor
        same = all(
            (other.tensor.storage_offset(), other.tensor.shape, other.tensor.stride())
            == (tensor.storage_offset(), tensor.shape, tensor.stride())
            for other in group.others
        )
        usable = group.flaw is None and same and tensor.numel() > 0
        lines = self._lines(tensor) if usable else (None,) * tensor.dim()
        return Leaf(group.main.name, tuple(slot.name for slot in group.others), tensor, lines)

    def _lines(self, tensor: torch.Tensor) -> tuple[Ids | None, ...]:
        return tuple(self._channels.create(size) if size > 1 else None for size in tensor.shape)
