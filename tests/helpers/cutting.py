"""Removes channels of a coupling in two ways, for tests: by zeros in what consumes them, and by smaller tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning_server.graph.coupling.groups import ChannelGroup, Coupling

Removed = Mapping[int, Sequence[int]]
"""Channel numbers to remove, by group number."""


def coordinates(coupling: Coupling, removed: Removed, *, consumers: bool = False) -> dict[tuple[str, int], list[int]]:
    """What to remove of every tensor and axis; of consumers only, if asked."""
    found: dict[tuple[str, int], list[int]] = {}
    for number, channels in removed.items():
        for member in coupling.groups[number].members:
            if consumers and not member.consumer:
                continue
            for name in (member.tensor, *member.aliases):
                gone = [one for channel in channels for one in member.coordinates[channel]]
                found.setdefault((name, member.axis), []).extend(gone)
    return found


def stored(module: torch.jit.ScriptModule) -> dict[str, Tensor]:
    """All parameters and buffers, tied ones under every name."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def zero_consumers(module: torch.jit.ScriptModule, coupling: Coupling, removed: Removed) -> None:
    """The masked reference, in place."""
    tensors = stored(module)
    with torch.no_grad():
        for (name, axis), gone in coordinates(coupling, removed, consumers=True).items():
            if name not in tensors:  # an entry of a list, on the memory of one that is there
                continue
            tensors[name].index_fill_(axis, torch.tensor(gone, dtype=torch.int64), 0.0)


def smaller_tensors(module: torch.jit.ScriptModule, coupling: Coupling, removed: Removed) -> dict[str, Tensor]:
    """Every parameter and buffer without the removed coordinates."""
    tensors = {name: tensor.detach().clone() for name, tensor in stored(module).items()}
    for (name, axis), gone in coordinates(coupling, removed).items():
        if name not in tensors:
            continue
        length = stored(module)[name].shape[axis]
        kept = torch.tensor([one for one in range(length) if one not in set(gone)], dtype=torch.int64)
        tensors[name] = tensors[name].index_select(axis, kept)
    return tensors


def put(module: torch.jit.ScriptModule, tensors: Mapping[str, Tensor]) -> None:
    """Sets tensors of other shapes in a loaded module."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        owner = dict(module.named_modules(remove_duplicate=False))[path]
        owner._c.setattr(last, torch.nn.Parameter(tensor) if name in parameters else tensor)


def group_of(coupling: Coupling, tensor: str, axis: int) -> tuple[int, ChannelGroup]:
    """The only group with this axis of this tensor."""
    found = [
        (number, group)
        for number, group in enumerate(coupling.groups)
        if any(member.tensor == tensor and member.axis == axis for member in group.members)
    ]
    assert len(found) == 1, coupling
    return found[0]


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Gives every parameter and buffer a value that a wrong index would show, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(values + 0.5 if "running_var" in name else values - 0.4)
