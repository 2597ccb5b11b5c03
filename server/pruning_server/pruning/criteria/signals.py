"""What criteria on activations share: which inputs of which calls a group's channels are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.coupling.groups import Member
from pruning_server.pruning.criteria.base import Basis, Scored
from pruning_server.pruning.criteria.elements import rows_of

UNSCORED = (
    "no convolution or linear layer takes these channels in where a run could watch them, so a criterion on activations"
    " cannot tell what they are worth; choose another criterion, such as l1"
)

Watch = Callable[[int, Member, torch.Tensor, LinearCall], None]
"""(group's number, its member, the inputs that belong to each channel: int64 [channels, inputs], call)."""


def watch(scored: Scored, basis: Basis, visit: Watch, *, samples: int) -> None:
    """Shows every use of a stored kernel that takes in a group's channels, in runs of the caller's samples."""
    by_tensor: dict[str, list[tuple[int, Member]]] = {}
    for number, members in scored.items():
        for member in members:
            for name in (member.tensor, *member.aliases):
                by_tensor.setdefault(name, []).append((number, member))
    known: dict[tuple[int, str, int, int], torch.Tensor | None] = {}

    def see(call: LinearCall) -> None:
        for number, member in by_tensor.get(call.weight, ()):
            key = (number, call.weight, member.axis, call.in_axis)
            if key not in known:
                known[key] = find_inputs(member, call)
            inputs = known[key]
            if inputs is not None:
                visit(number, member, inputs, call)

    basis.data.calls(see, samples=samples, names=frozenset(by_tensor))


def find_inputs(member: Member, call: LinearCall) -> torch.Tensor | None:
    """Which of the call's input channels belong to each of the member's; None where the member is none of its input.

    In a grouped convolution a channel of its own axis stands for the inputs of the parts that it lies in, and one of the
    contracted axis for the same input of every part.
    """
    rows = rows_of(member)
    transposed = call.geometry is not None and call.geometry.transposed
    parts = call.groups
    if member.axis == call.in_axis:
        if parts == 1 or transposed:
            return rows
        width = call.kernel.shape[call.in_axis]
        return (rows.unsqueeze(2) + torch.arange(parts) * width).flatten(1)
    if member.axis != call.out_axis or parts == 1 or transposed:
        return None
    width, height = call.kernel.shape[call.in_axis], call.kernel.shape[call.out_axis] // parts
    lies_in = [sorted({row // height for row in channel}) for channel in rows.tolist()]
    if len({len(found) for found in lies_in}) != 1:
        return None
    return (torch.tensor(lies_in).unsqueeze(2) * width + torch.arange(width)).flatten(1)


def mean_by_channel(
    scored: Scored, basis: Basis, of: Callable[[torch.Tensor], torch.Tensor], *, samples: int
) -> dict[int, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The mean of a function of the channels' values, by group and by the kernel that takes them in.

    Args:
        scored: the groups.
        basis: with evidence.
        of: of values [in, positions], by element.
        samples: of the fit split.

    Returns:
        For each kernel the means per channel [channels] and of all its inputs []; a group that no call takes in has none.
    """
    sums: dict[int, dict[str, torch.Tensor]] = {number: {} for number in scored}
    totals: dict[int, dict[str, torch.Tensor]] = {number: {} for number in scored}
    counts: dict[int, dict[str, int]] = {number: {} for number in scored}
    last: list[tuple[LinearCall, torch.Tensor]] = []

    def add(number: int, _: Member, inputs: torch.Tensor, call: LinearCall) -> None:
        if not last or last[0][0] is not call:  # several groups may share an axis
            last[:] = [(call, of(call.columns()).double().sum(dim=1).cpu())]
        line, name = last[0][1], call.weight
        positions = call.columns().shape[1]
        sums[number][name] = sums[number].get(name, torch.zeros(())) + line[inputs].mean(dim=1)
        totals[number][name] = totals[number].get(name, torch.zeros(())) + line.mean()
        counts[number][name] = counts[number].get(name, 0) + positions

    watch(scored, basis, add, samples=samples)
    return {
        number: {
            name: (sums[number][name] / count, totals[number][name] / count) for name, count in by_name.items() if count
        }
        for number, by_name in counts.items()
        if by_name
    }
