"""Conditional pruning: an expression over features decides, or a risk that is certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.harm import harm_p_value
from pruning_server.graph.modules import KERNEL_KINDS, get_tensor
from pruning_server.graph.values import Weight
from pruning_server.pruning.conditions.candidates import find_candidates
from pruning_server.pruning.conditions.channels import plan_channels
from pruning_server.pruning.conditions.observing import observe_gradients
from pruning_server.pruning.conditions.problem import HarmTest, Problem
from pruning_server.pruning.conditions.sensitivity import sensitivity_of_channels, sensitivity_of_weights
from pruning_server.pruning.conditions.tables import GroupMembers
from pruning_server.pruning.conditions.weights import plan_weights
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.features.base import GradientMoments, Layer
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.condition import FEATURES, FeatureLevel, check_granularity, parse_condition
from pruning_server.spec.request import ConditionalStrategy
from pruning_server.worker.phases.observe import STRUCTURAL
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.structures import Channels, find_channels


def plan(context: Planning, strategy: ConditionalStrategy) -> PruningPlan | StructuralPlan:
    """Masks, or the channels to remove.

    Raises:
        ConditionError: the condition cannot be read, or its features are finer than the granularity.
        JobFailureError: nothing can be pruned, or the target cannot be reached with what qualifies.
    """
    problem = find_problem(context, strategy)
    observed, subject = context.observed, context.loaded.subject
    if observed.channels is not None:
        return plan_channels(observed.channels.inputs(subject, observed.selection.weights), problem)
    groups: tuple[GroupMembers, ...] = ()
    if any(FEATURES[name].level is FeatureLevel.CHANNEL for name in problem.condition.features):
        structure = _channels(context).inputs(subject, observed.selection.weights)
        groups = tuple(find_candidates(structure, problem).groups.values())
    return plan_weights(observed.selection.inputs(subject), problem, groups)


def find_problem(context: Planning, strategy: ConditionalStrategy) -> Problem:
    """What the condition decides over; nothing is run before a feature asks for it.

    Raises:
        ConditionError: as `plan` does.
    """
    if strategy.condition is None:
        raise JobFailureError(Reason.INTERNAL, "There is no condition to plan by; please report this.")
    condition = parse_condition(strategy.condition)
    check_granularity(condition, strategy.granularity)
    return Problem(
        condition=condition,
        strategy=strategy,
        target=context.spec.target,
        layers=_layers(context, strategy),
        evidence=context.evidence,
        harm=_harm(context, strategy),
        exclude_layers=context.spec.exclude_layers,
        progress=context.story.progress,
    )


def _channels(context: Planning) -> Channels:
    observed = context.observed
    return find_channels(context.loaded.archive, observed.feed, observed.rule, observed.method_feeds, observed.sizes)


def _harm(context: Planning, strategy: ConditionalStrategy) -> HarmTest:
    margin = strategy.margin if strategy.margin is not None else context.spec.evaluation.margin
    is_binary = context.observed.judging.metric.is_binary

    def p_value(original: SampleScores, changed: SampleScores) -> float:
        return harm_p_value(original.metric, changed.metric, original.units, margin, is_binary=is_binary)

    return HarmTest(p_value, margin)


def _layers(context: Planning, strategy: ConditionalStrategy) -> Mapping[str, Layer]:
    """Every kernel of the model, by each of its names."""
    kernels = [weight for weight in context.observed.survey.weights if weight.kind in KERNEL_KINDS]
    selected = {weight.name for weight in context.observed.selection.weights}

    @cache
    def gradients() -> Mapping[str, GradientMoments]:
        return observe_gradients(context.evidence, sorted(selected))

    found = {}
    for index, weight in enumerate(kernels):
        layer = Layer(
            tensor=get_tensor(context.loaded.subject, weight.name).detach().cpu(),
            path=weight.layer,
            kind=weight.kind.value,
            index=index,
            count=len(kernels),
            macs=context.observed.macs.by_layer.get(weight.layer),
            gradients=_moments(gradients, weight.name),
            sensitivity=_sensitivity(context, strategy, weight),
        )
        found.update(dict.fromkeys((weight.name, *weight.aliases), layer))
    return found


def _moments(gradients: Callable[[], Mapping[str, GradientMoments]], name: str) -> Callable[[], GradientMoments]:
    return lambda: gradients()[name]


def _sensitivity(context: Planning, strategy: ConditionalStrategy, weight: Weight) -> Callable[[], float]:
    @cache
    def measure() -> float:
        tensor: torch.Tensor = get_tensor(context.loaded.subject, weight.name)
        channels = context.observed.channels
        if strategy.granularity in STRUCTURAL and channels is not None:
            return sensitivity_of_channels(context.evidence, channels.groups, (weight.name, *weight.aliases), tensor)
        return sensitivity_of_weights(context.evidence, weight.name, tensor)

    return measure
