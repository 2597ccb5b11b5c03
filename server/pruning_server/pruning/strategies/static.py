"""Static pruning at weight granularity: once, after training, by magnitude threshold or to an exact sparsity.

Han, Pool, Tran, Dally 2015, arXiv:1506.02626 (magnitude threshold, then fine-tuning with the zeros held).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.pruning import criteria
from pruning_server.pruning.ranking import lowest
from pruning_server.pruning.rounding import round_down
from pruning_server.pruning.scoring import check_finite, seed_of
from pruning_server.pruning.values import Mask, PruningPlan, ScoredInput
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind

NAME = "static"
SUMMARY = (
    "after training, once: weights below a threshold, or the least important ones up to a sparsity, become 0; or the least"
    " important channels or heads are removed, up to a sparsity, a parameter_ratio or a macs_ratio"
)
GRANULARITIES = (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD)
TARGETS = (TargetKind.THRESHOLD, TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO)

_MAX_NAMES = 5


class StaticPruning:
    """Plans masks from the weights' values alone."""

    def plan(self, weights: Sequence[ScoredInput], config: StaticStrategy, target: Target, seed: int) -> PruningPlan:
        """Decides which elements become 0; the tensors are read, not written.

        Args:
            weights: what may be pruned, in the model's order, which breaks ties between equal scores.
            config: `criterion` and `scope` apply to a sparsity; a threshold is compared with |w| in the weight's dtype.
            target: THRESHOLD t > 0 removes exactly the weights with |w| < t; SPARSITY s in [0, 1) exactly round(s * n)
                of the n elements of all weights, or of each weight with `Scope.LAYER`.
            seed: for criteria that draw.

        Raises:
            InvalidRequestError: an unknown criterion, or a target out of its range.
            JobFailureError: NOTHING_PRUNABLE without weights, MODEL_NOT_FINITE where a weight is NaN or infinite,
                EVERYTHING_PRUNED where no weight would be left.
            NotImplementedFeatureError: another granularity or target.
        """
        if config.granularity is not Granularity.WEIGHT:
            raise NotImplementedFeatureError(f"static pruning with granularity {config.granularity.value}")
        if not sum(weight.tensor.numel() for weight in weights):
            raise JobFailureError(Reason.NOTHING_PRUNABLE, "the model has no weights that can be pruned")
        for weight in weights:
            check_finite(weight.name, weight.tensor)
        if target.kind is TargetKind.THRESHOLD:
            masks, notes = _by_threshold(weights, config, target.value)
        elif target.kind is TargetKind.SPARSITY:
            masks, notes = _by_sparsity(weights, config, target.value, seed), ()
        else:
            raise NotImplementedFeatureError(f"static pruning of weights to a {target.kind.value}")
        return PruningPlan(masks, (*notes, *_notes_on_empty(masks)))


# --- Threshold --------------------------------------------------------------------------------------------------------


def _by_threshold(
    weights: Sequence[ScoredInput], config: StaticStrategy, threshold: float
) -> tuple[dict[str, Mask], tuple[str, ...]]:
    if not (math.isfinite(threshold) and threshold > 0):
        raise InvalidRequestError.for_field("spec.threshold", f"must be a number greater than 0, not {threshold}")
    masks = {weight.name: Mask(weight.name, _below(weight.tensor, threshold)) for weight in weights}
    largest = [float(weight.tensor.detach().abs().max()) for weight in weights if weight.tensor.numel()]
    if all(mask.removed_count == mask.numel for mask in masks.values()):
        raise JobFailureError(Reason.EVERYTHING_PRUNED, _everything_below(masks, threshold, largest))
    notes = []
    if config.criterion != "l1":
        notes.append(f"the criterion {config.criterion} has no effect: a threshold is compared with the magnitude")
    if not any(mask.removed_count for mask in masks.values()):
        smallest = min(float(weight.tensor.detach().abs().min()) for weight in weights if weight.tensor.numel())
        notes.append(
            f"no weight is below the threshold {threshold:g}: nothing was removed; magnitudes go from {smallest:.4g}"
            f" to {max(largest):.4g}"
        )
    return masks, tuple(notes)


def _below(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """|w| < t as the weight's own type sees t: a weight that was set to t stays."""
    limit = torch.tensor(threshold, dtype=torch.float64).to(weight.dtype).to(weight.device)
    magnitude = weight.detach().abs()
    # A threshold below the type's smallest number becomes 0; weights that are 0 are below it all the same.
    return ((magnitude < limit) | (magnitude == 0)).cpu()


def _everything_below(masks: Mapping[str, Mask], threshold: float, largest: Sequence[float]) -> str:
    total = sum(mask.numel for mask in masks.values())
    everywhere, anywhere = round_down(min(largest)), round_down(max(largest))
    advice = (
        f"at most {everywhere:g} leaves weights in every layer, at most {anywhere:g} leaves some at all"
        if 0 < everywhere < anywhere
        else f"at most {anywhere:g} leaves some"
        if anywhere > 0
        else "all of them are 0 already; send a trained model"
    )
    return f"the threshold {threshold:g} removes all {total:,} prunable weights; choose a smaller one: {advice}"


# --- Sparsity ---------------------------------------------------------------------------------------------------------


def _by_sparsity(weights: Sequence[ScoredInput], config: StaticStrategy, sparsity: float, seed: int) -> dict[str, Mask]:
    if not 0 <= sparsity < 1:
        raise InvalidRequestError.for_field("spec.sparsity", f"must be at least 0 and less than 1, not {sparsity}")
    criterion = criteria.get(config.criterion)
    scores = [criterion.score(weight.tensor, seed_of(weight.name, seed)).cpu().reshape(-1) for weight in weights]
    if config.scope is Scope.LAYER:
        removed = [lowest(one, round(sparsity * one.numel())) for one in scores]
    else:
        together = torch.cat(scores)
        marked = lowest(together, round(sparsity * together.numel()))
        removed = list(marked.split([one.numel() for one in scores]))
    masks = {
        weight.name: Mask(weight.name, mark.reshape(weight.tensor.shape))
        for weight, mark in zip(weights, removed, strict=True)
    }
    if all(mask.removed_count == mask.numel for mask in masks.values()):
        total = sum(mask.numel for mask in masks.values())
        raise JobFailureError(
            Reason.EVERYTHING_PRUNED,
            f"the sparsity {sparsity:g} removes all {total:,} prunable weights; choose at most"
            f" {round_down((total - 1) / total):g}",
        )
    return masks


def _notes_on_empty(masks: Mapping[str, Mask]) -> tuple[str, ...]:
    empty = [mask.name for mask in masks.values() if mask.numel and mask.removed_count == mask.numel]
    if not empty:
        return ()
    names = ", ".join(empty[:_MAX_NAMES]) + (" and more" if len(empty) > _MAX_NAMES else "")
    return (f"{len(empty)} of {len(masks)} weights are entirely 0 ({names}): their layers pass on nothing",)
