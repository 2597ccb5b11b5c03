"""Proves a coupling on a net whose code holds widths: the net built anew and smaller must equal the masked one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from helpers import cutting, zoo
from pruning_server.graph.coupling.groups import Coupling, find_frozen, find_groups
from pruning_server.graph.coupling.tracer import Tracer


def coupled(archive: torch.jit.ScriptModule, x: Sequence[Any]) -> Coupling:
    """The groups of `forward`; every op's rule must have worked."""
    tracer = Tracer(zoo.reload(archive))
    tracer.trace("forward", x)
    tracer.finish()
    assert tracer.failed_rules == [], tracer.failed_rules
    return Coupling(find_groups(tracer.leaves, tracer.channels), find_frozen(tracer.leaves, tracer.channels))


def archived(net: nn.Module, x: Sequence[Any], *, scripted: bool) -> torch.jit.ScriptModule:
    """A caller's archive, in double precision, with values that a wrong index would show."""
    cutting.randomize(net, seed=3)
    return zoo.scripted(net.eval()) if scripted else zoo.traced(net, *x)


def assert_rebuilt(
    build: Callable[[int], nn.Module],
    width: int,
    x: Sequence[Any],
    place: tuple[str, int],
    *,
    size: int,
    share: int,
    scripted: bool = False,
    removed: int = 1,
) -> None:
    """Removes one channel of the group at a place (tensor, axis) of `build(width)`; rebuilt means `build(width - 1)`.

    `size` channels are expected in the group, each with `share` coordinates at the place.
    """
    archive = archived(build(width), x, scripted=scripted)
    coupling = coupled(archive, x)
    number, group = cutting.group_of(coupling, *place)
    assert group.size == size
    found = next(one for one in group.members if (one.tensor, one.axis) == place)
    assert {len(one) for one in found.coordinates} == {share}
    masked = zoo.reload(archive)
    cutting.zero_consumers(masked, coupling, {number: [removed]})
    smaller = build(width - 1).double().eval()
    smaller.load_state_dict(cutting.smaller_tensors(archive, coupling, {number: [removed]}))
    with torch.no_grad(), torch.jit.optimized_execution(False):
        expected = masked(*x)
        assert not torch.allclose(archive(*x), expected, rtol=1e-4, atol=1e-4), "the channel does not matter"
        torch.testing.assert_close(smaller(*x), expected, rtol=1e-9, atol=1e-9)


def free(coupling: Coupling) -> set[tuple[str, int]]:
    """Every (tensor, axis) that can lose channels."""
    return {(member.tensor, member.axis) for group in coupling.groups for member in group.members}
