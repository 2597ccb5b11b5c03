"""Where a module keeps its tensors, and which of them are the same memory.

A slot is a place that holds a tensor: a parameter, a buffer, a plain attribute, an element of a list, tuple or dict.
Its path is the submodules' names, the attribute's name and, inside containers, the index or key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pruning_server.graph import ir

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Slot:
    """One place with a tensor; `owner` is the path of the submodule that holds it."""

    path: Path
    owner: Path
    tensor: torch.Tensor
    parameter: bool

    @property
    def name(self) -> str:
        """The dotted name."""
        return dotted(self.path)

    @property
    def layer(self) -> str:
        """The name of the submodule that holds it; its own name where the root holds it."""
        return dotted(self.owner) if self.owner else self.path[0]


def dotted(path: Path) -> str:
    """The path as people write it."""
    return ".".join(path)


@dataclass(frozen=True)
class Places:
    """What can be found under a path: submodules, tensors, containers of tensors, anything else.

    `containers` maps a container's path to the keys that lead to its tensors; `opaque` lists attributes that Python
    cannot read.
    """

    modules: Mapping[Path, ir.Module]
    slots: Mapping[Path, Slot]
    containers: Mapping[Path, tuple[object, ...]]
    opaque: tuple[Path, ...]


def find_places(module: ir.Module) -> Places:
    """Walks the module and everything that it holds; parameters come first in every submodule."""
    modules: dict[Path, ir.Module] = {}
    slots: dict[Path, Slot] = {}
    containers: dict[Path, tuple[object, ...]] = {}
    opaque: list[Path] = []
    for path, owner in _submodules(module, ()):
        modules[path] = owner
        for name, value, parameter in ir.attributes(owner):
            here = (*path, name)
            if value is ir.OPAQUE:
                opaque.append(here)
            for inner, content in flatten(value, here):
                if isinstance(content, torch.Tensor):
                    slots[inner] = Slot(inner, path, content, parameter)
                else:
                    containers[inner] = content
    return Places(modules, slots, containers, tuple(opaque))


def _submodules(module: ir.Module, path: Path) -> Iterator[tuple[Path, ir.Module]]:
    yield path, module
    for name, child in ir.children(module):
        yield from _submodules(child, (*path, name))


def flatten(value: object, path: Path) -> Iterator[tuple[Path, torch.Tensor | tuple[object, ...]]]:
    """Yields the tensors in a nest of lists, tuples and dicts, and every container with its keys before its content."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, list | tuple | dict):
        entries: Sequence[tuple[object, object]]
        entries = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        yield path, tuple(key for key, _ in entries)
        for key, content in entries:
            yield from flatten(content, (*path, str(key)))


def get_tensor(module: ir.Module, name: str) -> torch.Tensor:
    """The stored tensor itself (not a copy) under a dotted name, as `find_weights` and `named_parameters` give it.

    Raises:
        KeyError: the module holds no tensor of that name.
    """
    owner, rest = module, name
    while True:
        head, _, tail = rest.partition(".")
        child = dict(ir.children(owner)).get(head)
        if child is None or not tail:
            break
        owner, rest = child, tail
    if not head or not ir.has_attribute(owner, head):
        raise KeyError(name)
    value = ir.read_attribute(owner, head)
    for path, content in flatten(value, (head,)):
        # Keys of dicts may contain dots, so whole names are compared.
        if dotted(path) == rest and isinstance(content, torch.Tensor):
            return content
    raise KeyError(name)


# --- Memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryGroup:
    """Slots on the same elements; `main` covers all of them. `flaw` says why it cannot be pruned, if so."""

    main: Slot
    others: tuple[Slot, ...]
    flaw: str | None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All of them, `main` first."""
        return (self.main, *self.others)


def group_by_memory(slots: Sequence[Slot]) -> tuple[MemoryGroup, ...]:
    """Groups slots that share elements, in the order of their first slot; tied weights are one group.

    Slots of one storage that do not overlap (as cuDNN's flattened recurrent weights) stay apart.
    """
    storages: dict[object, list[Slot]] = {}
    for slot in slots:
        storages.setdefault(_storage_key(slot), []).append(slot)
    order = {slot.path: position for position, slot in enumerate(slots)}
    groups = [group for members in storages.values() for group in _split_storage(members)]
    return tuple(sorted(groups, key=lambda group: min(order[slot.path] for slot in group.slots)))


def _storage_key(slot: Slot) -> object:
    tensor = slot.tensor
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() == 0 or tensor.is_meta:
        return slot.path  # no plain memory that another slot could share
    return (str(tensor.device), tensor.untyped_storage().data_ptr())


def _split_storage(members: Sequence[Slot]) -> Iterator[MemoryGroup]:
    pending = list(members)
    while pending:
        cluster, pending = [pending[0]], pending[1:]
        grown = True
        while grown:
            touching = [slot for slot in pending if any(_overlap(slot.tensor, other.tensor) for other in cluster)]
            grown = bool(touching)
            cluster += touching
            pending = [slot for slot in pending if all(slot is not other for other in touching)]
        yield _make_group(cluster)


def _make_group(cluster: Sequence[Slot]) -> MemoryGroup:
    largest = max(slot.tensor.numel() for slot in cluster)
    candidates = [slot for slot in cluster if slot.tensor.numel() == largest]
    main = next((slot for slot in candidates if slot.parameter), candidates[0])
    others = tuple(slot for slot in cluster if slot is not main)
    return MemoryGroup(main, others, _flaw(main.tensor, [slot.tensor for slot in others]))


def _flaw(main: torch.Tensor, others: Sequence[torch.Tensor]) -> str | None:
    if main.is_quantized:
        return "it is quantized; send the model as it was before quantization"
    if main.layout is not torch.strided:
        return "it is stored sparse; store it as a dense tensor"
    if main.is_meta:
        return "it has no values (a tensor on the meta device)"
    if not main.is_floating_point():
        return f"its type is {str(main.dtype).removeprefix('torch.')}; only floating-point weights can be pruned"
    if _overlaps_itself(main):
        return "several of its elements are one and the same memory (an expanded tensor); store a contiguous copy"
    for other in others:
        if other.dtype != main.dtype or (not _same_view(main, other) and not _covers(main, other)):
            return "another stored tensor overlaps only a part of its memory; store copies instead of views"
    return None


def _same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.storage_offset(), one.shape, one.stride()) == (other.storage_offset(), other.shape, other.stride())


def _byte_span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + (last + 1) * tensor.element_size()


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    (one_start, one_end), (other_start, other_end) = _byte_span(one), _byte_span(other)
    if one_end <= other_start or other_end <= one_start:
        return False
    if one.dtype != other.dtype or _fills_span(one) or _fills_span(other):
        return True
    return bool(torch.isin(_elements(one), _elements(other)).any())


def _fills_span(tensor: torch.Tensor) -> bool:
    start, end = _byte_span(tensor)
    return (end - start) == tensor.numel() * tensor.element_size() and not _overlaps_itself(tensor)


def _covers(main: torch.Tensor, other: torch.Tensor) -> bool:
    if _fills_span(main):
        (main_start, main_end), (start, end) = _byte_span(main), _byte_span(other)
        return main_start <= start and end <= main_end
    return bool(torch.isin(_elements(other), _elements(main)).all())


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether two coordinates may be one element; errs towards yes for interleaved strides."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _elements(tensor: torch.Tensor) -> torch.Tensor:
    """Positions of the tensor's elements in its storage."""
    positions = torch.tensor([tensor.storage_offset()])
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        positions = (positions.unsqueeze(-1) + torch.arange(size) * stride).reshape(-1)
    return positions
