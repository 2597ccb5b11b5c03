"""Which channels of a group matter most to a core that does without the others."""

from __future__ import annotations

import torch

from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.importance import Tensors, slices_of


def order_by_gain(group: ChannelGroup, tensors: Tensors) -> tuple[int, ...] | None:
    """The group's channels, those first that can contribute most; None where nothing of the group consumes them.

    A channel's gain is the norm of the kernels that make it times the norm of those that use it: what it can add to the
    next layer's values per unit of its input. Unlike a sum it is the same however the two share a factor, which
    homogeneous activations leave free (the path norm of Neyshabur et al. 2015, arXiv:1503.00036, for one channel).
    """
    made = _norms([one for one in group.members if not one.consumer], tensors, kernels=True)
    used = _norms([one for one in group.members if one.consumer], tensors, kernels=False)
    if used is None:
        return None
    gain = used if made is None else used * made
    return tuple(torch.argsort(gain, descending=True, stable=True).tolist())


def _norms(members: list[Member], tensors: Tensors, *, kernels: bool) -> torch.Tensor | None:
    """[channels] norm over all members' slices; `kernels`: of tensors with several axes only, as a bias is no path."""
    squares = None
    for member in members:
        tensor = tensors(member.tensor)
        if not tensor.is_floating_point() or (kernels and sum(size > 1 for size in tensor.shape) < 2):
            continue
        found = slices_of(member, tensor).double().square().sum(dim=1).cpu()
        squares = found if squares is None else squares + found
    return None if squares is None else squares.sqrt()
