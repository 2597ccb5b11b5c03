"""The share of a channel's variance that least squares on the other kept channels explain; the least over consumers.

The multiple correlation coefficient: 1 - 1 / (variance * diagonal of the covariance's inverse). For pruning by what the
others can reconstruct: Luo, Wu, Lin 2017, arXiv:1707.06342.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.pruning.features.base import ActivationRelation, Activations, Relate, Relation

_RIDGE = 1e-9


def _prepare(members: Sequence[Activations]) -> Relate:
    # With few values any channel looks explained.
    usable = all(one.count > 2 * len(one.sums) for one in members)
    explained = [_Explained(one.covariance) for one in members] if usable else []

    def relate(kept: torch.Tensor) -> Relation:
        if not explained or int(kept.sum()) < 2:
            return Relation(torch.full((len(kept),), torch.nan, dtype=torch.float64), None)
        return Relation(torch.stack([one.by_others(kept) for one in explained]).amin(dim=0), None)

    return relate


class _Explained:
    """Of one consumer. The inverse of the kept channels' correlations is remembered: one channel less is a small change."""

    def __init__(self, covariance: torch.Tensor) -> None:
        variances = covariance.diagonal()
        self._varies = variances > 1e-18 * variances.max()
        deviations = torch.where(self._varies, variances, 1.0).clamp(min=1e-300).sqrt()
        ridge = _RIDGE * torch.eye(len(variances), dtype=torch.float64)
        self._correlation = covariance / torch.outer(deviations, deviations) + ridge
        self._kept = torch.zeros(len(variances), dtype=torch.bool)
        self._inverse = torch.zeros_like(self._correlation)

    def by_others(self, kept: torch.Tensor) -> torch.Tensor:
        """[channels] in [0, 1]; NaN of those that do not stay, and of constant ones."""
        wanted = kept & self._varies
        gone = (self._kept & ~wanted).nonzero().flatten()
        if bool((wanted & ~self._kept).any()) or len(gone) > 1:
            self._start(wanted)
        elif len(gone) == 1:
            self._drop(int(gone[0]))
        self._kept = wanted
        found = torch.full((len(kept),), torch.nan, dtype=torch.float64)
        found[wanted] = (1 - 1 / self._inverse.diagonal()[wanted]).clamp(0, 1)
        return found

    def _start(self, wanted: torch.Tensor) -> None:
        places = wanted.nonzero().flatten()
        self._inverse.zero_()
        self._inverse[places[:, None], places] = torch.linalg.inv(self._correlation[places][:, places])

    def _drop(self, channel: int) -> None:
        column = self._inverse[:, channel].clone()
        self._inverse -= torch.outer(column, column) / column[channel]
        self._inverse[channel] = 0
        self._inverse[:, channel] = 0


FEATURE = ActivationRelation("redundancy", _prepare)
