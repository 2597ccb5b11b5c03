"""How much each channel matters: one score for everything that goes with it.

Unless its criterion says otherwise, the score of a channel is the sum of the criterion's scores over its slices of all
weights of the group, of those that make the channel and of those that use it: with l1 the filter norm of Li et al. 2017
(arXiv:1608.08710), extended to coupled weights as the group norm of DepGraph (Fang et al. 2023, arXiv:2301.12900). As there,
scores are then relative to the mean of their layers, so that large weights, wide layers and groups of many members do not
win by that alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.criteria.base import Basis, Scored, Tensors
from pruning_server.pruning.criteria.elements import rows_of, sum_elements
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.scoring import check_finite

__all__ = ["Scored", "Tensors", "find_scored", "find_unscored", "score_channels", "slices_of"]


def find_scored(groups: Mapping[int, ChannelGroup], tensors: Tensors, names: frozenset[str]) -> Scored:
    """The members of each group whose elements count: the named weights of real numbers; groups without one are left out.

    Args:
        groups: by number.
        tensors: a stored tensor by name.
        names: the weights; running statistics, counters and other buffers are none.
    """
    found = {
        number: tuple(
            member
            for member in group.members
            if not names.isdisjoint((member.tensor, *member.aliases)) and tensors(member.tensor).is_floating_point()
        )
        for number, group in groups.items()
    }
    return {number: members for number, members in found.items() if members}


def score_channels(
    scored: Scored, tensors: Tensors, criterion: Criterion, seed: int, evidence: Evidence | None = None
) -> dict[int, torch.Tensor]:
    """A score per channel, float64, comparable between groups, by group number; the lowest are removed first.

    Groups that the criterion has nothing to say of are left out; `find_unscored` says why they stay.

    Args:
        scored: the members that count, by group number.
        tensors: a stored tensor by name; read, never written.
        criterion: what an element, or a channel, is worth.
        seed: for criteria that draw.
        evidence: for criteria that need data.

    Raises:
        JobFailureError: MODEL_NOT_FINITE where a weight is not, or its scores are too large to be added.
    """
    for name in dict.fromkeys(member.tensor for members in scored.values() for member in members):
        check_finite(name, tensors(name))
    basis = Basis(tensors, seed, evidence)
    if criterion.score_channels is not None:
        found = criterion.score_channels(scored, basis)
    elif criterion.score is not None:
        found = sum_elements(scored, basis, criterion.score)
    else:
        raise JobFailureError(
            Reason.INTERNAL, f"The criterion {criterion.name} scores no channels; please report this."
        )
    for number, scores in found.items():
        _require_numbers(scores, scored[number][0].tensor, criterion)
    return {number: found[number].cpu().double() for number in scored if number in found}


def find_unscored(
    groups: Mapping[int, ChannelGroup], scores: Iterable[int], criterion: Criterion
) -> tuple[FrozenUse, ...]:
    """The report's entries for the groups that stay because the criterion has no score for them."""
    known = frozenset(scores)
    return tuple(
        FrozenUse(
            op="",
            source="",
            reason=criterion.unscored,
            layers=tuple(dict.fromkeys(member.tensor for member in group.members)),
        )
        for number, group in groups.items()
        if number not in known
    )


def slices_of(member: Member, tensor: torch.Tensor) -> torch.Tensor:
    """A member's elements by channel: [channels, elements of each]."""
    rows = rows_of(member).to(tensor.device)
    taken = tensor.detach().movedim(member.axis, 0)[rows.reshape(-1)]
    return taken.reshape(len(rows), -1)


def _require_numbers(scores: torch.Tensor, name: str, criterion: Criterion) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise JobFailureError(
            Reason.MODEL_NOT_FINITE,
            f"The scores by {criterion.name} of the channels of {name} are not finite, as what the model computes there is"
            " not; choose another criterion, such as l1",
            metadata={"tensor": name},
        )
