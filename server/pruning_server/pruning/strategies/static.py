"""Static pruning of single weights: once, after training, by magnitude threshold, to an exact sparsity, or by an n:m pattern.

Han, Pool, Tran, Dally 2015, arXiv:1506.02626 (magnitude threshold, then fine-tuning with the zeros held).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.pruning import criteria
from pruning_server.pruning.allocation.nonzero import mark_to_ratio
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.ranking import lowest
from pruning_server.pruning.rounding import round_down
from pruning_server.pruning.scoring import check_finite
from pruning_server.pruning.strategies.automatic import keep_best
from pruning_server.pruning.strategies.static_nm import plan_pattern
from pruning_server.pruning.values import Mask, PruningPlan, ScoredInput
from pruning_server.pruning.weighing import report_unscored, score_weights
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind

NAME = "static"
SUMMARY = (
    "after training, once: weights below a threshold, or the least important ones up to a sparsity, a parameter_ratio or of"
    " every m neighbours, become 0; or the least important channels or heads are removed, up to a sparsity, a"
    " parameter_ratio, a macs_ratio or a measured latency_ratio"
)
GRANULARITIES = (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM)
TARGETS = (
    TargetKind.THRESHOLD,
    TargetKind.SPARSITY,
    TargetKind.PARAMETER_RATIO,
    TargetKind.MACS_RATIO,
    TargetKind.LATENCY_RATIO,
    TargetKind.MAX_ACCURACY_DROP,
)

_MAX_NAMES = 5


class StaticPruning:
    """Plans masks."""

    def plan(
        self,
        weights: Sequence[ScoredInput],
        config: StaticStrategy,
        target: Target | None,
        seed: int,
        evidence: Evidence | None = None,
        *,
        nonzero_parameters: int | None = None,
    ) -> PruningPlan:
        """Decides which elements become 0; the tensors are read, not written.

        Args:
            weights: what may be pruned, in the model's order, which breaks ties between equal scores.
            config: `criterion` and `scope` apply to a sparsity; a threshold is compared with |w| in the weight's dtype. For
                granularity n:m see `static_nm`.
            target: THRESHOLD t > 0 removes exactly the weights with |w| < t; SPARSITY s in [0, 1) exactly round(s * n)
                of the n elements of all weights that the criterion scores, or of each weight with `Scope.LAYER`. None only
                with a pattern.
                PARAMETER_RATIO r in (0, 1]: the fewest without which at most r of the model's parameters that are not 0
                are left.
            seed: for criteria that draw.
            evidence: for criteria that need data.
            nonzero_parameters: of the whole model; None: it has nothing but these weights.

        Raises:
            InvalidRequestError: an unknown criterion, one for channels only, or a target out of its range.
            JobFailureError: NOTHING_PRUNABLE without weights, MODEL_NOT_FINITE where a weight is NaN or infinite,
                EVERYTHING_PRUNED where no weight would be left.
            NotImplementedFeatureError: another granularity or target.
        """
        if config.granularity not in {Granularity.WEIGHT, Granularity.NM}:
            raise NotImplementedFeatureError(f"static pruning with granularity {config.granularity.value}")
        criterion = criteria.get_for(config.criterion, config.granularity)
        if not sum(weight.tensor.numel() for weight in weights):
            raise JobFailureError(Reason.NOTHING_PRUNABLE, "the model has no weights that can be pruned")
        for weight in weights:
            check_finite(weight.name, weight.tensor)
        if target is not None and target.kind is TargetKind.THRESHOLD and config.granularity is Granularity.WEIGHT:
            masks, notes = _by_threshold(weights, config, target.value)
            return PruningPlan(masks, (*notes, *_notes_on_empty(masks)))
        if criterion.needs is criteria.Needs.TRIALS:
            return keep_best(
                config,
                evidence,
                lambda one: self.plan(weights, one, target, seed, evidence, nonzero_parameters=nonzero_parameters),
            )
        if config.granularity is Granularity.NM:
            return plan_pattern(weights, config, target, seed, evidence)
        if target is not None and target.kind is TargetKind.PARAMETER_RATIO:
            return _by_ratio(weights, config, target.value, criterion, seed, evidence, nonzero_parameters)
        if target is None or target.kind is not TargetKind.SPARSITY:
            raise NotImplementedFeatureError(
                f"static pruning of weights to a {target.kind.value if target else 'pattern'}"
            )
        return _by_sparsity(weights, config, target.value, criterion, seed, evidence)


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


def _by_sparsity(
    weights: Sequence[ScoredInput],
    config: StaticStrategy,
    sparsity: float,
    criterion: Criterion,
    seed: int,
    evidence: Evidence | None,
) -> PruningPlan:
    if not 0 <= sparsity < 1:
        raise InvalidRequestError.for_field("spec.sparsity", f"must be at least 0 and less than 1, not {sparsity}")
    scores = score_weights(weights, criterion, seed, evidence)
    flat = [one.reshape(-1) for one in scores.values()]
    if config.scope is Scope.LAYER:
        removed = [lowest(one, round(sparsity * one.numel())) for one in flat]
    else:
        together = torch.cat(flat)
        marked = lowest(together, round(sparsity * together.numel()))
        removed = list(marked.split([one.numel() for one in flat]))
    masks = {
        name: Mask(name, mark.reshape(one.shape)) for (name, one), mark in zip(scores.items(), removed, strict=True)
    }
    if all(mask.removed_count == mask.numel for mask in masks.values()):
        total = sum(mask.numel for mask in masks.values())
        raise JobFailureError(
            Reason.EVERYTHING_PRUNED,
            f"the sparsity {sparsity:g} removes all {total:,} prunable weights; choose at most"
            f" {round_down((total - 1) / total):g}",
        )
    return PruningPlan(masks, _notes_on_empty(masks), frozen=report_unscored(weights, criterion, scores))


def _by_ratio(
    weights: Sequence[ScoredInput],
    config: StaticStrategy,
    ratio: float,
    criterion: Criterion,
    seed: int,
    evidence: Evidence | None,
    nonzero_parameters: int | None,
) -> PruningPlan:
    scores = score_weights(weights, criterion, seed, evidence)
    values = {weight.name: weight.tensor.detach() for weight in weights if weight.name in scores}
    alive = sum(int(torch.count_nonzero(value)) for value in values.values())
    others = max(0, (nonzero_parameters or alive) - alive)
    flat = [scores[name].reshape(-1) for name in values]
    marked = mark_to_ratio(flat, list(values.values()), others, ratio, config.scope)
    masks = {
        name: Mask(name, mark.reshape(value.shape)) for (name, value), mark in zip(values.items(), marked, strict=True)
    }
    return PruningPlan(masks, _notes_on_empty(masks), frozen=report_unscored(weights, criterion, scores))


def _notes_on_empty(masks: Mapping[str, Mask]) -> tuple[str, ...]:
    empty = [mask.name for mask in masks.values() if mask.numel and mask.removed_count == mask.numel]
    if not empty:
        return ()
    names = ", ".join(empty[:_MAX_NAMES]) + (" and more" if len(empty) > _MAX_NAMES else "")
    return (f"{len(empty)} of {len(masks)} weights are entirely 0 ({names}): their layers pass on nothing",)
