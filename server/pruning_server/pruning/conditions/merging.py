"""A removed channel's twin takes over: what consumers did with the removed one, they do with the kept one, scaled.

Where a consumer's input channels a (kept) and b (removed) are related by b = slope * a + intercept (least squares over the
samples), its kernel's slice of b, times the slope, is added to that of a, and the slice times the intercept to the bias.
Without a bias the line goes through the origin. Where an image is padded the intercept is added at its borders too.

After Srinivas, Babu 2015, arXiv:1507.06149 (neurons with similar weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.pruning.conditions.greedy import Step
from pruning_server.pruning.conditions.observing import Consumer
from pruning_server.pruning.conditions.tables import GroupMembers
from pruning_server.spec.report_strategy import MergedPair

_LINEAR_KINDS = frozenset({"conv", "linear"})


@dataclass(frozen=True)
class Merged:
    """New values of stored tensors by name, what was merged, and what people should know."""

    updates: Mapping[str, torch.Tensor]
    pairs: tuple[MergedPair, ...]
    notes: tuple[str, ...]


def merge(
    steps: Sequence[Step],
    groups: Mapping[int, GroupMembers],
    tensors: Callable[[str], torch.Tensor],
    kind_of: Callable[[str], str | None],
) -> Merged:
    """Merges every removed channel that has a partner into it, at every consumer where that is possible.

    Args:
        steps: the channels that go; partners stay.
        groups: by number.
        tensors: a stored tensor by name; read, never written.
        kind_of: the kind of the layer with this kernel, None where it is no layer's.
    """
    updates: dict[str, torch.Tensor] = {}
    pairs: list[MergedPair] = []
    skipped: dict[str, None] = {}
    without_bias: dict[str, None] = {}
    merged_steps = [step for step in steps if step.partner is not None]
    for step in merged_steps:
        members = groups[step.group]
        skipped.update(dict.fromkeys(members.unseen))
        for consumer in members.consumers:
            # Memory with several names may be used by other ops, too, which must go on as they are.
            if consumer.member.aliases or kind_of(consumer.member.tensor) not in _LINEAR_KINDS:
                skipped[consumer.member.tensor] = None
                continue
            if not _takes_constants(consumer, tensors):
                without_bias[consumer.member.tensor] = None
            pairs.append(_merge_one(step, consumer, tensors, updates))
    notes = []
    if pairs:
        notes.append(f"{len(merged_steps)} channels were merged into a correlated one that stays")
    if without_bias:
        notes.append(f"no bias takes constants over in {_listed(without_bias)}: there the line goes through the origin")
    if skipped:
        notes.append(f"not merged where {_listed(skipped)} use the channels: not a product with a kernel of its own")
    return Merged(updates, tuple(pairs), tuple(notes))


def _merge_one(
    step: Step, consumer: Consumer, tensors: Callable[[str], torch.Tensor], updates: dict[str, torch.Tensor]
) -> MergedPair:
    removed, kept = step.channel, int(step.partner or 0)
    bias = consumer.bias if _takes_constants(consumer, tensors) else None
    slope, intercept = _line(consumer, removed, kept, has_intercept=bias is not None)
    kernel = _current(consumer.member.tensor, tensors, updates)
    lines = kernel.movedim(consumer.member.axis, 0)
    places = consumer.member.coordinates
    gone = lines[list(places[removed])].clone()
    lines[list(places[kept])] += slope * gone
    if bias is not None:
        # The output's channels come first now that the input's axis is at the front.
        _current(bias, tensors, updates).add_(
            intercept * gone.flatten(2).sum(dim=2).sum(dim=0) if gone.dim() > 2 else intercept * gone.sum(dim=0)
        )
    return MergedPair(
        layer=consumer.member.tensor,
        group=step.group,
        removed=removed,
        kept=kept,
        slope=slope,
        intercept=intercept,
        correlation=step.correlation,
    )


def _line(consumer: Consumer, removed: int, kept: int, *, has_intercept: bool) -> tuple[float, float]:
    seen = consumer.activations
    if has_intercept:
        covariance = seen.covariance
        slope = _ratio(float(covariance[kept, removed]), float(covariance[kept, kept]))
        return slope, float(seen.mean[removed]) - slope * float(seen.mean[kept])
    return _ratio(float(seen.products[kept, removed]), float(seen.products[kept, kept])), 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _takes_constants(consumer: Consumer, tensors: Callable[[str], torch.Tensor]) -> bool:
    """Whether the bias has one value per output channel of the kernel, whose output is on the axis before the input's."""
    if consumer.bias is None or not consumer.adds_evenly:
        return False
    shape = tensors(consumer.member.tensor).shape
    out = [length for axis, length in enumerate(shape[:2]) if axis != consumer.member.axis]
    return tuple(tensors(consumer.bias).shape) == tuple(out)


def _current(name: str, tensors: Callable[[str], torch.Tensor], updates: dict[str, torch.Tensor]) -> torch.Tensor:
    if name not in updates:
        updates[name] = tensors(name).detach().clone()
    return updates[name]
