"""What criteria on gradients share: the first-order terms w * g, streamed batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning.criteria.base import Basis, Scored
from pruning_server.pruning.criteria.elements import consumers, rows_of, sum_over_others

UNSCORED = (
    "no gradient of the loss reaches it in any sample, so a criterion on gradients cannot tell what it is worth; choose"
    " another criterion, such as l1"
)


def mean_squares(names: Sequence[str], basis: Basis, *, samples: int, batch_size: int) -> dict[str, torch.Tensor]:
    """The mean over batches of (w * g)^2, for each element; weights that no gradient reaches are left out."""
    sums: dict[str, torch.Tensor] = {}
    reached: set[str] = set()
    count = 0
    for slopes in _slopes(names, basis, samples, batch_size):
        count += 1
        for name, slope in slopes.items():
            if bool(slope.any()):
                reached.add(name)
            term = _term(basis.tensors(name), slope).square_()
            sums[name] = sums[name].add_(term) if name in sums else term
    return {name: one / count for name, one in sums.items() if name in reached}


def mean_squares_of_channels(scored: Scored, basis: Basis, *, samples: int, batch_size: int) -> dict[int, torch.Tensor]:
    """The mean over batches of the square of a channel's sum of w * g.

    The sum goes over the weights that take the channel in: it is the loss's slope in a factor on the channel, and so what
    switching it off changes to first order. Over the weights that make a channel it is 0 where a normalization follows. It is
    squared when it is complete: terms of opposite signs cancel, as they do in the loss. So it has the same unit in every layer,
    and layers compete as they are.

    Groups that no gradient reaches are left out.
    """
    takers = {number: consumers(members) for number, members in scored.items()}
    names = list(dict.fromkeys(member.tensor for members in takers.values() for member in members))
    sums = {number: torch.zeros(len(members[0].coordinates), dtype=torch.float64) for number, members in takers.items()}
    count = 0
    for slopes in _slopes(names, basis, samples, batch_size):
        count += 1
        for number, terms in _terms(takers, basis, slopes).items():
            sums[number] += terms.square()
    return {number: one / count for number, one in sums.items() if bool(one.any())}


def _terms(takers: Scored, basis: Basis, slopes: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    lines: dict[tuple[str, int], torch.Tensor] = {}
    places = {(member.tensor, member.axis) for members in takers.values() for member in members}
    for name, slope in slopes.items():
        term = _term(basis.tensors(name), slope)
        lines |= {(name, axis): sum_over_others(term, axis) for tensor, axis in places if tensor == name}
    return {
        number: torch.stack([lines[one.tensor, one.axis][rows_of(one)].sum(dim=1) for one in members]).sum(dim=0)
        for number, members in takers.items()
    }


def _slopes(names: Sequence[str], basis: Basis, samples: int, batch_size: int) -> Iterator[Mapping[str, torch.Tensor]]:
    for gradients in basis.data.gradients(names, samples=samples, batch_size=batch_size):
        for name, gradient in gradients.items():
            if not bool(torch.isfinite(gradient).all()):
                raise JobFailureError(
                    Reason.MODEL_NOT_FINITE,
                    f"The loss's gradient for {name} is NaN or infinite for some of the samples, so a criterion on gradients"
                    " says nothing; choose another criterion, such as l1",
                    metadata={"tensor": name},
                )
        yield gradients


def _term(weight: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return weight.detach().cpu().double() * slope.cpu().double()
