"""How much each single weight matters, by a criterion and, where that needs it, the caller's data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.values import FrozenUse
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.criteria.base import Basis
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.scoring import seed_of
from pruning_server.pruning.values import ScoredInput


def score_weights(
    weights: Sequence[ScoredInput], criterion: Criterion, seed: int, evidence: Evidence | None = None
) -> dict[str, torch.Tensor]:
    """A score per element by weight name, on the CPU, in the weights' shapes; the lowest are removed first.

    Weights that the criterion has nothing to say of are left out.

    Args:
        weights: their tensors are read, never written.
        criterion: of single weights.
        seed: for criteria that draw.
        evidence: for criteria that need data.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: it scores none of them; MODEL_NOT_FINITE where its scores are not.
    """
    if criterion.score_weights is not None:
        tensors = {weight.name: weight.tensor for weight in weights}
        given = criterion.score_weights(tuple(tensors), Basis(tensors.__getitem__, seed, evidence))
        found = {name: given[name].cpu() for name in tensors if name in given}
    elif criterion.score is not None:
        found = {weight.name: criterion.score(weight.tensor, seed_of(weight.name, seed)).cpu() for weight in weights}
    else:
        raise JobFailureError(Reason.INTERNAL, f"The criterion {criterion.name} scores no weights; please report this.")
    if not found:
        raise JobFailureError(
            Reason.NOTHING_PRUNABLE,
            f"the criterion {criterion.name} scores no weight of the model: {criterion.unscored}",
        )
    for name, scores in found.items():
        if not bool(torch.isfinite(scores).all()):
            raise JobFailureError(
                Reason.MODEL_NOT_FINITE,
                f"the scores by {criterion.name} of {name} are not finite; choose another criterion, such as l1",
                metadata={"tensor": name},
            )
    return found


def report_unscored(
    weights: Sequence[ScoredInput], criterion: Criterion, scores: Collection[str]
) -> tuple[FrozenUse, ...]:
    """The report's entry for the weights that stay because the criterion has no score for them."""
    left = tuple(weight.name for weight in weights if weight.name not in scores)
    return (FrozenUse(op="", source="", reason=criterion.unscored, layers=left),) if left else ()
