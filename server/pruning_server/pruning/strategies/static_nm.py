"""Static pruning by an n:m pattern: of every m neighbours along a kernel's input axis, the n most important stay.

Mishra et al. 2021, arXiv:2104.08378 (2:4, as hardware takes it); Zhou et al. 2021, arXiv:2102.04010 (any n:m).

Neighbours are m consecutive input channels, starting at a multiple of m: of one output and, in a convolution, one place of the
kernel. What is left at the end of an axis whose length is no multiple of m stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, Reason
from pruning_server.graph.capture import LinearCall
from pruning_server.graph.values import FrozenUse, WeightKind
from pruning_server.pruning import criteria
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.values import Mask, PruningPlan, ScoredInput
from pruning_server.pruning.weighing import report_unscored, score_weights
from pruning_server.spec.request import NmPattern, StaticStrategy, Target, TargetKind

_MAX_NAMES = 5
_NO_AXIS = "no run multiplies it along one of its axes, so there are no neighbours to choose from"
_TWO_AXES = "runs multiply it along several of its axes"


def plan_pattern(
    weights: Sequence[ScoredInput],
    config: StaticStrategy,
    target: Target | None,
    seed: int,
    evidence: Evidence | None,
) -> PruningPlan:
    """Masks of exactly m - n of every m neighbours; the tensors are read, not written.

    Args:
        weights: what may be pruned. Kernels of convolutions, linear and recurrent layers with at least m input channels
            take part; the others are left whole, and the plan's `frozen` says why.
        config: with an `nm_pattern`.
        target: None, or the sparsity 1 - n / m that the pattern comes to.
        seed: for criteria that draw.
        evidence: shows along which axes kernels are multiplied.

    Raises:
        InvalidRequestError: no pattern, or a target that is another one.
        JobFailureError: NOTHING_PRUNABLE: no kernel takes part.
    """
    pattern = config.nm_pattern
    if pattern is None or not 0 < pattern.n < pattern.m:
        raise InvalidRequestError.for_field("spec.static.nm_pattern", "needs 0 < n < m, e.g. 2:4")
    check_target(pattern, target)
    fitting = find_fitting(weights, pattern, evidence)
    chosen = [weight for weight in weights if weight.name in fitting.axes]
    criterion = criteria.get_for(config.criterion, config.granularity)
    scores = score_weights(chosen, criterion, seed, evidence)
    masks = {name: Mask(name, least_of(one, fitting.axes[name], pattern)) for name, one in scores.items()}
    frozen = (*fitting.frozen, *report_unscored(chosen, criterion, scores))
    return PruningPlan(masks, _notes(chosen, fitting, pattern), frozen=frozen)


def find_fitting(weights: Sequence[ScoredInput], pattern: NmPattern, evidence: Evidence | None) -> Fitting:
    """Which weights take part, and along which axis.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: none does.
    """
    fitting = _sort(weights, pattern, _input_axes(weights, evidence))
    if not fitting.axes:
        reasons = "; ".join(dict.fromkeys(use.reason for use in fitting.frozen))
        raise JobFailureError(
            Reason.NOTHING_PRUNABLE, f"no kernel takes a pattern of {pattern.n}:{pattern.m}: {reasons}"
        )
    return fitting


def check_target(pattern: NmPattern, target: Target | None) -> None:
    """Checks that a target asks for nothing but the pattern.

    Raises:
        InvalidRequestError: it does.
    """
    implied = 1 - pattern.n / pattern.m
    if target is None or (target.kind is TargetKind.SPARSITY and math.isclose(target.value, implied, abs_tol=1e-6)):
        return
    raise InvalidRequestError.for_field(
        f"spec.{target.kind.value}",
        f"the pattern {pattern.n}:{pattern.m} is the target itself, a sparsity of {implied:g}: leave the target out",
    )


def least_of(scores: torch.Tensor, axis: int, pattern: NmPattern) -> torch.Tensor:
    """Marks the m - n lowest scores of every m neighbours along an axis; of equal ones the first. Bool, of the same shape."""
    lines = scores.movedim(axis, -1)
    whole = lines.shape[-1] // pattern.m * pattern.m
    blocks = lines[..., :whole].reshape(*lines.shape[:-1], -1, pattern.m)
    order = torch.argsort(blocks + 0.0, dim=-1, stable=True)  # adding 0 turns -0 into 0
    marked = torch.zeros(blocks.shape, dtype=torch.bool).scatter_(-1, order[..., : pattern.m - pattern.n], True)
    removed = torch.zeros(lines.shape, dtype=torch.bool)
    removed[..., :whole] = marked.reshape(*lines.shape[:-1], whole)
    return removed.movedim(-1, axis).contiguous()


# --- Which take part --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitting:
    """The input axes of the weights that take part, by name, and why the others do not."""

    axes: Mapping[str, int]
    frozen: tuple[FrozenUse, ...]


def _input_axes(weights: Sequence[ScoredInput], evidence: Evidence | None) -> Mapping[str, frozenset[int]]:
    if evidence is None:
        raise JobFailureError(Reason.INTERNAL, "A pattern was asked without data; please report this.")
    found: dict[str, set[int]] = {
        # A recurrent kernel is [gates and hidden units, inputs] in every layer.
        weight.name: {1}
        for weight in weights
        if weight.kind is WeightKind.RECURRENT and weight.tensor.dim() == 2
    }

    def visit(call: LinearCall) -> None:
        found.setdefault(call.weight, set()).add(call.in_axis)

    evidence.calls(visit, samples=1, names=frozenset(weight.name for weight in weights))
    return {name: frozenset(axes) for name, axes in found.items()}


def _sort(weights: Sequence[ScoredInput], pattern: NmPattern, axes: Mapping[str, frozenset[int]]) -> Fitting:
    fitting: dict[str, int] = {}
    left: dict[str, list[str]] = {}
    for weight in weights:
        found = axes.get(weight.name, frozenset())
        if len(found) != 1:
            left.setdefault(_TWO_AXES if found else _NO_AXIS, []).append(weight.name)
            continue
        (axis,) = found
        length = weight.tensor.shape[axis]
        if length < pattern.m:
            reason = f"its input axis has fewer weights ({length}) than the {pattern.m} of the pattern"
            left.setdefault(reason, []).append(weight.name)
        else:
            fitting[weight.name] = axis
    frozen = tuple(FrozenUse(op="", source="", reason=reason, layers=tuple(names)) for reason, names in left.items())
    return Fitting(fitting, frozen)


def _notes(weights: Sequence[ScoredInput], fitting: Fitting, pattern: NmPattern) -> tuple[str, ...]:
    text = f"pattern {pattern.n}:{pattern.m}: of every {pattern.m} consecutive input channels {pattern.n} weights stay"
    tails = {
        weight.name: rest for weight in weights if (rest := weight.tensor.shape[fitting.axes[weight.name]] % pattern.m)
    }
    notes = [f"{text}, in {len(fitting.axes)} kernels"]
    if tails:
        names = ", ".join(f"{name} ({rest})" for name, rest in list(tails.items())[:_MAX_NAMES])
        more = " and more" if len(tails) > _MAX_NAMES else ""
        notes.append(f"input axes that are no multiple of {pattern.m} keep their last channels whole: {names}{more}")
    whole = sum(len(use.layers) for use in fitting.frozen)
    if whole:
        notes.append(f"{whole} kernels take no part in the pattern; the report's frozen list says why")
    return tuple(notes)
