"""A condition over single weights: masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.errors import JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.pruning.conditions.describing import Sketch, count_of, range_of, ranges_note, texts_of
from pruning_server.pruning.conditions.evaluate import Truth, Value, evaluate
from pruning_server.pruning.conditions.greedy import ordering_feature
from pruning_server.pruning.conditions.problem import Problem
from pruning_server.pruning.conditions.tables import GroupMembers
from pruning_server.pruning.features import FEATURES
from pruning_server.pruning.features.base import (
    ActivationFeature,
    LayerFeature,
    SliceFeature,
    WeightFeature,
)
from pruning_server.pruning.importance import slices_of
from pruning_server.pruning.rounding import round_down
from pruning_server.pruning.scoring import check_finite
from pruning_server.pruning.values import Mask, PruningPlan, ScoredInput
from pruning_server.spec.condition import FEATURES as CATALOGUE
from pruning_server.spec.condition.catalogue import Order
from pruning_server.spec.condition.tree import Node, comparisons_in, render
from pruning_server.spec.report_strategy import ConditionalDetails, FeatureRange
from pruning_server.spec.request import TargetKind


def plan_weights(weights: Sequence[ScoredInput], problem: Problem, groups: Sequence[GroupMembers] = ()) -> PruningPlan:
    """Decides which weights become 0; the tensors are read, not written.

    A feature of channels has its value for the weights that make the channel. Where several layers take a channel, what
    they take of it is a value each, and the condition must hold for all.

    Args:
        weights: what may be pruned, in the model's order; each is a layer of the problem.
        problem: the condition and what it may ask; a target other than a sparsity is refused.
        groups: what is known of channels, where the condition names a feature of them.

    Raises:
        JobFailureError: NOTHING_PRUNABLE without weights, MODEL_NOT_FINITE where one is NaN or infinite,
            TARGET_UNREACHABLE where too few weights meet the condition.
        NotImplementedFeatureError: another target.
    """
    if not sum(weight.tensor.numel() for weight in weights):
        raise JobFailureError(Reason.NOTHING_PRUNABLE, "the model has no weights that can be pruned")
    for weight in weights:
        check_finite(weight.name, weight.tensor)
    judged = [_judge(weight, problem, groups) for weight in weights]
    held = sum(one.held for one in judged)
    qualified = sum(int(one.marked.sum()) for one in judged) + held
    if problem.target is not None:
        _restrict(judged, problem)
    masks = {weight.name: Mask(weight.name, one.marked) for weight, one in zip(weights, judged, strict=True)}
    removed = sum(mask.removed_count for mask in masks.values())
    details = _details(judged, problem, qualified, removed, held)
    notes = []
    if not qualified:
        notes.append(ranges_note(details, "weight"))
    if held:
        notes.append(f"{held} weights that meet the condition stay: their layers would be empty without them")
    return PruningPlan(masks, tuple(notes), details=details)


@dataclass
class _Judged:
    """One kernel.

    Attributes:
        marked: where the condition holds, less the one that stays where it holds everywhere.
        held: 1 where one stays for that, else 0.
        order: of the marked ones, in their order; lower goes first. None where nobody asks.
        ranges: what the report says of the features.
        counts: of each comparison.
    """

    marked: torch.Tensor
    held: int
    order: torch.Tensor | None
    ranges: dict[str, Sketch | str]
    counts: list[Counter[str]]


def _judge(weight: ScoredInput, problem: Problem, groups: Sequence[GroupMembers]) -> _Judged:
    layer = problem.layers[weight.name]
    shape = weight.tensor.shape
    fixed: dict[str, Value] = {}
    by_consumer: dict[str, torch.Tensor] = {}
    for name in problem.condition.features:
        feature = FEATURES[name]
        if isinstance(feature, WeightFeature):
            fixed[name] = feature.compute(layer).cpu()
        elif isinstance(feature, LayerFeature):
            value = feature.compute(layer)
            fixed[name] = value if isinstance(value, str) else torch.tensor(value, dtype=torch.float64)
        elif isinstance(feature, SliceFeature | ActivationFeature):
            by_consumer[name] = _of_channels(feature, weight, groups)
    views = max((len(values) for values in by_consumer.values()), default=1)
    tables = [
        {**fixed, **{name: values[min(view, len(values) - 1)] for name, values in by_consumer.items()}}
        for view in range(views)
    ]
    truth = _truth(problem.condition.tree, tables, shape)
    counts = []
    for part in comparisons_in(problem.condition.tree):
        found = _truth(part, tables, shape)
        holds, fails = int(found.true.sum()), int(found.false.sum())
        counts.append(Counter(holds=holds, fails=fails, unknown=weight.tensor.numel() - holds - fails))
    ranges = {
        name: value if isinstance(value, str) else Sketch.of(value) for name, value in (fixed | by_consumer).items()
    }
    marked = truth.true.clone()
    held = bool(marked.numel()) and bool(marked.all())
    order = _order(weight, problem, tables[0]) if held or problem.target is not None else None
    if held and order is not None:
        marked.view(-1)[int(order.reshape(-1).argmax())] = False
    return _Judged(marked, int(held), None if order is None else order[marked], ranges, counts)


def _truth(node: Node, tables: Sequence[Mapping[str, Value]], shape: torch.Size) -> Truth:
    found = [evaluate(node, table) for table in tables]
    true = torch.stack([one.true.expand(shape) for one in found]).all(dim=0)
    false = torch.stack([one.false.expand(shape) for one in found]).any(dim=0)
    return Truth(true, false)


def _of_channels(
    feature: SliceFeature | ActivationFeature, weight: ScoredInput, groups: Sequence[GroupMembers]
) -> torch.Tensor:
    """[views, ...] that broadcasts against the kernel: per channel that it makes; one view per consumer, NaN elsewhere."""
    shape = weight.tensor.shape
    found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for members in groups:
        for producer in members.producers:
            if weight.name not in (producer.member.tensor, *producer.member.aliases):
                continue
            member = producer.member
            places = torch.tensor(member.coordinates, dtype=torch.int64)
            if isinstance(feature, SliceFeature):
                rows = feature.compute(slices_of(member, weight.tensor).double().cpu()).reshape(1, -1)
            elif members.unseen or not members.consumers:
                continue
            else:
                rows = torch.stack([feature.compute(one.activations) for one in members.consumers])
            found.append((member.axis, places, rows))
    views = max((len(rows) for _, _, rows in found), default=1)
    axis = found[0][0] if found else 0
    line = torch.full((views, shape[axis]), torch.nan, dtype=torch.float64)
    for other, places, rows in found:
        if other == axis:
            spread = rows.repeat_interleave(places.shape[1], dim=1)
            line[:, places.reshape(-1)] = spread[[min(view, len(rows) - 1) for view in range(views)]]
    sizes = [views, *[1] * len(shape)]
    sizes[1 + axis] = shape[axis]
    return line.reshape(sizes)


def _order(weight: ScoredInput, problem: Problem, table: Mapping[str, Value]) -> torch.Tensor:
    """Lower goes first."""
    name = ordering_feature(problem.condition)
    value = table.get(name) if name is not None else None
    if name is None or not isinstance(value, torch.Tensor):
        return weight.tensor.detach().double().abs().cpu()
    values = -value if CATALOGUE[name].order is Order.HIGH else value
    return values.expand(weight.tensor.shape).nan_to_num(nan=float("inf"))


def _restrict(judged: Sequence[_Judged], problem: Problem) -> None:
    """Leaves as many marks as the sparsity asks for: the first in order over all layers."""
    target = problem.target
    if target is None or target.kind is not TargetKind.SPARSITY:
        kind = target.kind.value if target else "missing"
        raise NotImplementedFeatureError(f"a condition over weights with a {kind} target")
    total = sum(one.marked.numel() for one in judged)
    marks = torch.cat([one.marked.reshape(-1) for one in judged])
    candidates = marks.nonzero().flatten()
    wanted = round(target.value * total)
    if wanted > len(candidates):
        nearest = round_down(len(candidates) / total)
        raise JobFailureError(
            Reason.TARGET_UNREACHABLE,
            f"sparsity {target.value:g} cannot be reached with the weights that meet the condition; ask for at most"
            f" {nearest:g}, or for a condition that more weights meet",
            metadata={"target": target.kind.value, "nearest": repr(nearest)},
        )
    order = torch.cat([one.order for one in judged if one.order is not None])
    chosen = torch.zeros_like(marks)
    chosen[candidates[torch.argsort(order, stable=True)[:wanted]]] = True
    for one, part in zip(judged, chosen.split([one.marked.numel() for one in judged]), strict=True):
        one.marked = part.reshape(one.marked.shape)


def _details(
    judged: Sequence[_Judged], problem: Problem, qualified: int, removed: int, held: int
) -> ConditionalDetails:
    counts = [sum((one.counts[place] for one in judged), Counter[str]()) for place in range(len(judged[0].counts))]
    parts = list(comparisons_in(problem.condition.tree))
    return ConditionalDetails(
        condition=problem.condition.text,
        candidates=sum(one.marked.numel() for one in judged),
        qualified=qualified,
        removed=removed,
        kept_by_floors=held,
        order=ordering_feature(problem.condition) or "abs_weight",
        features=tuple(_range(name, judged) for name in problem.condition.features),
        comparisons=tuple(count_of(render(part), count) for part, count in zip(parts, counts, strict=True)),
    )


def _range(name: str, judged: Sequence[_Judged]) -> FeatureRange:
    found = [one.ranges[name] for one in judged]
    sketches = [one for one in found if isinstance(one, Sketch)]
    return range_of(name, sketches) if sketches else texts_of(name, [one for one in found if isinstance(one, str)])
