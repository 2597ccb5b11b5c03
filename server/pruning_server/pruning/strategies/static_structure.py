"""Static pruning of channels and heads: the least important go at once, up to a sparsity or down to a cost.

Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710 (filters by magnitude); Fang, Ma, Song, Mi, Wang 2023,
arXiv:2301.12900 (coupled channels as one, scores relative to their layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from msgspec import structs

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning import criteria
from pruning_server.pruning.allocation.sharing import Allocation
from pruning_server.pruning.allocation.targets import PICKS, Chosen
from pruning_server.pruning.candidates import Candidates, find_candidates, name_reasons, without_unscored
from pruning_server.pruning.criteria import Criterion
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.importance import score_channels
from pruning_server.pruning.ladder import SOFT_FLOOR, Ladder
from pruning_server.pruning.rounding import round_down, round_up
from pruning_server.pruning.strategies.automatic import keep_best
from pruning_server.pruning.values import StructuralInput, StructuralPlan
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind

Adjust = Callable[[Mapping[int, torch.Tensor]], Mapping[int, torch.Tensor]]


def plan_structure(
    structure: StructuralInput,
    config: StaticStrategy,
    target: Target,
    seed: int,
    *,
    exclude_layers: Sequence[str] = (),
    adjust: Adjust | None = None,
    evidence: Evidence | None = None,
    ladder: Ladder | None = None,
) -> StructuralPlan:
    """Decides which channels go; reads tensors and writes none.

    Args:
        structure: the model.
        config: with granularity HEAD only whole heads go, with CHANNEL everything that can. `channels.min_channels` stay
            in every layer (all, where it has fewer; heads where it has heads). What a group keeps is rounded up to
            `channels.multiple`; heads are not rounded.
        target: SPARSITY s in [0, 1): of the n channels of all groups that may lose some, the fewest that are at least
            round(s * n) after rounding: exactly that many without multiples. PARAMETER_RATIO and MACS_RATIO r in (0, 1]:
            the fewest, in the criterion's order, with which after / before is at most r. LATENCY_RATIO r in (0, 1]: the
            fewest that were measured to take at most r of the original's time, with `evidence.latency_ratio`.
        seed: for criteria that draw.
        exclude_layers: shell wildcards as `selection.select` takes them; a group with any member in them stays whole.
        adjust: what to make of the scores of all channels that may go, by group number.
        evidence: for criteria that need data.
        ladder: an order of removals to keep to, of `order_structure`; None: one is found as `config` says.

    Raises:
        InvalidRequestError: an unknown criterion, or a target out of its range.
        JobFailureError: NOTHING_PRUNABLE; MODEL_NOT_FINITE where a weight is NaN or infinite; TARGET_UNREACHABLE, with
            the nearest target that can be met, and where the model's MACs are not known.
        NotImplementedFeatureError: another granularity or target.
    """
    _check(config, target)
    structure = replace(structure, tensors=cache(structure.tensors))
    criterion = criteria.get_for(config.criterion, config.granularity)
    if criterion.needs is criteria.Needs.TRIALS:
        return _with_best(
            config,
            target,
            evidence,
            lambda one, goal: plan_structure(
                structure, one, goal, seed, exclude_layers=exclude_layers, adjust=adjust, evidence=evidence
            ),
        )
    found, scores = _scored(structure, config, criterion, seed, exclude_layers, evidence)
    if adjust is not None:
        scores = dict(adjust(scores))
    allocation = Allocation(structure, config, target, found.groups, scores, seed, evidence, ladder)
    ladder, chosen, told = allocation.share_out()
    if not chosen.is_reached:
        raise _unreachable(structure, config, target, found, chosen)
    return StructuralPlan(
        removal=ladder.removal(chosen.counts),
        removable=dict(ladder.sizes),
        achieved=chosen.achieved,
        frozen=found.frozen,
        notes=(*found.notes, *told, *_notes(ladder, config, target, chosen), *chosen.notes),
    )


def order_structure(
    structure: StructuralInput,
    config: StaticStrategy,
    target: Target,
    seed: int,
    evidence: Evidence,
    *,
    exclude_layers: Sequence[str] = (),
    off: Removal | None = None,
) -> Ladder:
    """The order in which channels do least harm to the model as it is now, by trials; arguments as of `plan_structure`.

    `evidence` speaks of the model as it is now, too; `off`: channels that are switched off in it, which go first.
    """
    structure = replace(structure, tensors=cache(structure.tensors))
    criterion = criteria.get_for(config.criterion, config.granularity)
    found, scores = _scored(structure, config, criterion, seed, exclude_layers, evidence)
    gone = {number: channels for number, channels in (off or {}).items() if number in found.groups}
    return Allocation(structure, config, target, found.groups, scores, seed, evidence).by_sensitivity(gone)[0]


def _scored(
    structure: StructuralInput,
    config: StaticStrategy,
    criterion: Criterion,
    seed: int,
    exclude_layers: Sequence[str],
    evidence: Evidence | None,
) -> tuple[Candidates, dict[int, torch.Tensor]]:
    """What may go, and the scores of its channels."""
    found = find_candidates(structure, config.granularity, exclude_layers, criterion)
    scores = score_channels(found.scored, structure.tensors, criterion, seed, evidence)
    return without_unscored(found, scores, criterion), dict(scores)


def _with_best(
    config: StaticStrategy,
    target: Target,
    evidence: Evidence | None,
    make: Callable[[StaticStrategy, Target], StructuralPlan],
) -> StructuralPlan:
    """The plan of the best criterion; where plans are dear, criteria are compared by cheaper ones."""
    cheaper, goal = config, target
    if config.scope is Scope.SENSITIVITY:
        cheaper = structs.replace(config, scope=Scope.GLOBAL)
    if target.kind is TargetKind.LATENCY_RATIO:
        # Work goes with the square of the widths.
        goal = Target(kind=TargetKind.SPARSITY, value=1 - target.value**0.5)
    best = keep_best(cheaper, evidence, lambda one: make(one, goal))
    if (cheaper, goal) == (config, target) or best.choice is None:
        return best
    plan = make(structs.replace(config, criterion=best.choice.chosen), target)
    return replace(plan, notes=(*best.notes[:1], *plan.notes), choice=best.choice)


def _check(config: StaticStrategy, target: Target) -> None:
    if config.granularity not in {Granularity.CHANNEL, Granularity.HEAD}:
        raise NotImplementedFeatureError(f"structural pruning with granularity {config.granularity.value}")
    value = target.value
    if target.kind is TargetKind.SPARSITY:
        if not 0 <= value < 1:
            raise InvalidRequestError.for_field("spec.sparsity", f"must be at least 0 and less than 1, not {value}")
    elif target.kind not in {*PICKS, TargetKind.LATENCY_RATIO}:
        raise NotImplementedFeatureError(f"a {target.kind.value} target with {config.granularity.value} granularity")
    elif not 0 < value <= 1:
        raise InvalidRequestError.for_field(f"spec.{target.kind.value}", f"must be above 0 and at most 1, not {value}")


# --- What is said -----------------------------------------------------------------------------------------------------


def _unreachable(
    structure: StructuralInput, config: StaticStrategy, target: Target, found: Candidates, chosen: Chosen
) -> JobFailureError:
    if target.kind is TargetKind.LATENCY_RATIO and chosen.achieved >= 1:
        return JobFailureError(
            Reason.TARGET_UNREACHABLE,
            f"latency_ratio {target.value:g} cannot be reached: no removal made it measurably faster on this device at this"
            " batch size;"
            " ask for a macs_ratio or a parameter_ratio, or measure larger batches (evaluation.latency_batch_size)",
            metadata={"target": target.kind.value, "nearest": "1.0"},
        )
    if target.kind is TargetKind.SPARSITY:
        nearest, word = round_down(chosen.achieved), "at most"
    else:
        nearest, word = round_up(chosen.achieved), "at least"
    floor = config.channels.min_channels
    limits = [f"every layer keeps {floor} channel{'s' if floor > 1 else ''}"]
    if config.channels.multiple != 1:
        limits.append("kept channels are rounded up to a multiple, which multiple 1 switches off")
    if found.excluded:
        limits.append(f"exclude_layers keeps {found.excluded} groups")
    if config.granularity is Granularity.HEAD:
        limits.append("only whole heads go")
    if target.kind is not TargetKind.SPARSITY:
        limits.append(f"the rest of the model is frozen{name_reasons(structure.frozen)}")
    limits += chosen.notes
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"{target.kind.value} {target.value:g} cannot be reached; ask for {word} {nearest:g}. What stays:"
        f" {'; '.join(limits)}",
        metadata={"target": target.kind.value, "nearest": repr(nearest)},
    )


def _notes(ladder: Ladder, config: StaticStrategy, target: Target, chosen: Chosen) -> tuple[str, ...]:
    exact = dict.fromkeys(ladder.sizes, 0)
    for number in ladder.steps[: chosen.steps]:
        exact[number] += 1
    changed = [number for number in exact if chosen.counts[number] != exact[number]]
    rounded = {ladder.multiples[number] for number in changed} - {1}
    notes = []
    if rounded and target.kind is not TargetKind.LATENCY_RATIO:
        notes.append(
            f"{len(changed)} of {len(exact)} groups keep more channels than the order says, to keep a multiple of"
            f" {', '.join(str(one) for one in sorted(rounded))}; {target.kind.value} is {chosen.achieved:.4g}"
        )
    if config.scope is not Scope.LAYER and chosen.steps > ladder.soft_steps:
        notes.append(
            f"some layers keep fewer than {SOFT_FLOOR:.0%} of their channels: the rest was not enough for the target"
        )
    return tuple(notes)
