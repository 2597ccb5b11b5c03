"""Tests of what removing channels costs: each that is left to be tested alone, then those that are to go together.

Channels whose fate does not depend on the test are not tested, and do not count among the tests. Those that were rejected
alone are tested together, in their order, in growing numbers, until a test fails: a fixed sequence, so that every test may
use the level itself (Maurer, Hothorn, Lehmacher 1995).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.conditions.greedy import Step
from pruning_server.pruning.conditions.problem import Problem
from pruning_server.pruning.conditions.tables import GroupTable
from pruning_server.pruning.features import p_harm
from pruning_server.spec.condition import Role
from pruning_server.spec.condition.tree import All, Any, Comparison, Feature, Node, features_in
from pruning_server.spec.report_strategy import HarmSection, JointTest

NAME = p_harm.FEATURE.name
_GROWTH = 1.25
_MAX_LISTED = 1_000
_MOST_SAMPLES = 10_000_000


@dataclass(frozen=True)
class Tested:
    """What the tests of single channels found.

    Attributes:
        values: [channels] corrected p-values by number of the group, NaN where nothing was tested.
        losses: [channels] what the loss was without the channel, likewise; it tells those apart that lost no sample.
        tests: how many there were, or would have been.
        needed: select samples from which on a test could reject anything; None where those that there are can.
    """

    values: Mapping[int, torch.Tensor]
    losses: Mapping[int, torch.Tensor]
    tests: int
    needed: int | None = None


def try_each(tables: Mapping[int, GroupTable], problem: Problem) -> Tested:
    """Tests every channel of which the rest of the condition does not decide; one run of the select samples for each.

    Nothing is run where not even a removal that changes nothing would be rejected.
    """
    values = {number: torch.full((table.size,), torch.nan, dtype=torch.float64) for number, table in tables.items()}
    losses = {number: one.clone() for number, one in values.items()}
    places = [(n, channel) for n, table in tables.items() for channel in _left_open(table, problem)]
    needed = _needed(places, tables, problem)
    if needed is not None:
        return Tested(values, losses, len(places), needed)
    raw, original = [], problem.evidence.original("select")
    for done, (number, channel) in enumerate(places):
        trial = problem.evidence.trial({number: (channel,)}, part="select")
        raw.append(problem.harm.p_value(original, trial))
        losses[number][channel] = trial.mean_loss
        problem.progress((done + 1) / len(places))
    for (number, channel), value in zip(places, p_harm.FEATURE.correct(raw, problem.strategy.correction), strict=True):
        values[number][channel] = value
    return Tested(values, losses, len(places))


def _left_open(table: GroupTable, problem: Problem) -> list[int]:
    """The channels whose fate depends on the test."""
    if problem.condition.uses(Role.RELATIVE):
        # Features that compare change as channels go; what is false now may be true then, and the reverse.
        return list(range(table.size))
    if _wants_small(problem.condition.tree):
        found = _true_at(table, problem, 0.0) & ~_true_at(table, problem, 1.0)
    else:
        truth = table.truth(problem.condition.tree, _with_p(table, torch.nan))
        found = ~(truth.true | truth.false)
    return [int(channel) for channel in found.nonzero().flatten()]


def _needed(places: Sequence[tuple[int, int]], tables: Mapping[int, GroupTable], problem: Problem) -> int | None:
    if not places or problem.condition.uses(Role.RELATIVE) or not _wants_small(problem.condition.tree):
        return None
    original = problem.evidence.original("select")

    def can_reject(best: float) -> bool:
        smallest = _smallest(best, len(places), problem)
        holds = {number: _true_at(table, problem, smallest) for number, table in tables.items()}
        return any(bool(holds[number][channel]) for number, channel in places)

    if can_reject(problem.harm.p_value(original, original)):
        return None
    samples = len(original)
    while samples < _MOST_SAMPLES and not can_reject((1 - min(problem.harm.margin, 1.0)) ** samples):
        samples = math.ceil(samples * 1.02)
    return samples


def _smallest(best: float, tests: int, problem: Problem) -> float:
    """The smallest corrected p-value, where no removal changes anything."""
    return p_harm.FEATURE.correct([best] * max(1, tests), problem.strategy.correction)[0]


def _wants_small(node: Node) -> bool:
    """Whether a smaller p-value never makes the condition false: it is only asked to be below something."""
    if all(feature.name != NAME for feature in features_in(node)):
        return True
    match node:
        case All(operands=parts) | Any(operands=parts):
            return all(_wants_small(part) for part in parts)
        case Comparison(operator=operator, left=left, right=right):
            small, large = (left, right) if operator in {"<", "<="} else (right, left)
            alone = isinstance(small, Feature) and all(feature.name != NAME for feature in features_in(large))
            return alone and operator in {"<", "<=", ">", ">="}
        case _:
            return False


def _true_at(table: GroupTable, problem: Problem, p_value: float) -> torch.Tensor:
    return table.truth(problem.condition.tree, _with_p(table, p_value)).true


def _with_p(table: GroupTable, p_value: float) -> dict[str, torch.Tensor]:
    relations = table.relations(torch.ones(table.size, dtype=torch.bool))
    values = torch.full((table.size,), p_value, dtype=torch.float64)
    return {**{name: one.values for name, one in relations.items()}, NAME: values}


def try_together(
    steps: Sequence[Step], tables: Mapping[int, GroupTable], problem: Problem
) -> tuple[list[Step], tuple[JointTest, ...]]:
    """The longest beginning of the steps for which the condition holds with the p-value of removing it all at once."""
    accepted, tests = 0, []
    while accepted < len(steps):
        count = min(len(steps), max(accepted + 1, int(accepted * _GROWTH)))
        first = steps[:count]
        removal: dict[int, tuple[int, ...]] = {}
        for step in first:
            removal[step.group] = (*removal.get(step.group, ()), step.channel)
        value = _p_value(problem, {number: tuple(sorted(channels)) for number, channels in sorted(removal.items())})
        tests.append(JointTest(channels=count, p_value=value))
        if not all(_holds(step, tables[step.group], problem, value) for step in first):
            break
        accepted = count
    return list(steps[:accepted]), tuple(tests)


def describe(tested: Tested, joint: tuple[JointTest, ...], steps: Sequence[Step], problem: Problem) -> HarmSection:
    """The report's section."""
    original = problem.evidence.original("select")
    best = problem.harm.p_value(original, original)
    return HarmSection(
        tests=tested.tests,
        samples=len(original),
        margin=problem.harm.margin,
        correction=problem.strategy.correction.value,
        smallest_p=_smallest(best, tested.tests, problem),
        needed_samples=tested.needed,
        joint=joint,
        p_values=tuple(
            (step.group, step.channel, float(tested.values[step.group][step.channel].nan_to_num(nan=1.0)))
            for step in steps[:_MAX_LISTED]
        ),
    )


def _p_value(problem: Problem, removal: Removal) -> float:
    trial = problem.evidence.trial(removal, part="select")
    return problem.harm.p_value(problem.evidence.original("select"), trial)


def _holds(step: Step, table: GroupTable, problem: Problem, value: float) -> bool:
    """Whether the condition still holds for a channel if its p-value is this one."""
    return bool(_true_at(table, problem, value)[step.channel])
