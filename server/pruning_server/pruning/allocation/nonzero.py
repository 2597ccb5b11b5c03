"""How many single weights go for a ratio of parameters: of those that are not 0, as zeros in place take no memory away."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, Reason
from pruning_server.pruning.allocation.targets import fewest
from pruning_server.pruning.ranking import ascending
from pruning_server.pruning.rounding import round_up
from pruning_server.spec.request import Scope


def mark_to_ratio(
    scores: Sequence[torch.Tensor], values: Sequence[torch.Tensor], others: int, ratio: float, scope: Scope
) -> list[torch.Tensor]:
    """Marks the fewest weights, the lowest scores first, without which few enough parameters of the model are not 0.

    Args:
        scores: 1-D per weight; of equal scores the first go first.
        values: the weights themselves, flattened in the same order.
        others: parameters of the rest of the model that are not 0; they stay.
        ratio: in (0, 1]: parameters that are not 0, after / before, of the whole model.
        scope: LAYER: every weight loses the same fraction, but for rounding. Otherwise scores compete.

    Returns:
        Bool tensors like the scores, True = becomes 0.

    Raises:
        InvalidRequestError: the ratio is out of its range.
        JobFailureError: TARGET_UNREACHABLE with the nearest ratio, where no weight would be left.
    """
    if not 0 < ratio <= 1:
        raise InvalidRequestError.for_field("spec.parameter_ratio", f"must be above 0 and at most 1, not {ratio}")
    alive = [one.reshape(-1).ne(0).cpu() for one in values]
    prunable = sum(int(one.sum()) for one in alive)
    before = others + prunable
    # Of the numbers around the product, as 0.29 * 100 is 28.999999999999996, and 29 of 100 are what 0.29 asks for.
    near = int(ratio * before)
    wanted = before - next(left for left in (near + 1, near, near - 1) if left / before <= ratio)
    if wanted >= prunable and wanted:
        raise _unreachable(ratio, others, before)
    if scope is Scope.LAYER:
        return _per_layer(scores, alive, wanted)
    order = ascending(torch.cat([one.double() for one in scores]))
    gone = torch.cat(alive)[order].cumsum(0)
    count = int(torch.searchsorted(gone, wanted)) + 1 if wanted else 0
    marked = torch.zeros(len(order), dtype=torch.bool)
    marked[order[:count]] = True
    return list(marked.split([len(one) for one in scores]))


def _per_layer(scores: Sequence[torch.Tensor], alive: Sequence[torch.Tensor], wanted: int) -> list[torch.Tensor]:
    orders = [ascending(one) for one in scores]
    gone = [
        torch.cat([torch.zeros(1, dtype=torch.int64), one[order].cumsum(0)])
        for one, order in zip(alive, orders, strict=True)
    ]
    total = sum(len(one) for one in scores)

    def counts(steps: int) -> list[int]:
        return [round(steps / total * len(one)) for one in scores]

    def is_enough(steps: int) -> bool:
        return sum(int(line[count]) for line, count in zip(gone, counts(steps), strict=True)) >= wanted

    marked = []
    for order, count in zip(orders, counts(fewest(total, is_enough)), strict=True):
        mark = torch.zeros(len(order), dtype=torch.bool)
        mark[order[:count]] = True
        marked.append(mark)
    return marked


def _unreachable(ratio: float, others: int, before: int) -> JobFailureError:
    nearest = min(1.0, round_up((others + 1) / before))
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"parameter_ratio {ratio:g} leaves no prunable weight; ask for at least {nearest:g}. What stays: {others:,} of"
        f" {before:,} parameters are biases, normalizations or excluded",
        metadata={"target": "parameter_ratio", "nearest": repr(nearest)},
    )
