"""What a criterion is, and what it may look at."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import Member
from pruning_server.pruning.evidence import Evidence
from pruning_server.spec.request import Granularity

Tensors: TypeAlias = Callable[[str], torch.Tensor]
"""A stored tensor by name; it is read, never written."""

Scored: TypeAlias = Mapping[int, tuple[Member, ...]]
"""The members of each group whose elements count, by the group's number."""

CHANNELS_ONLY = (Granularity.CHANNEL, Granularity.HEAD)
EVERYTHING = (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM)


class Needs(enum.StrEnum):
    """What a criterion asks of the caller's data; whoever needs nothing never touches it."""

    NONE = "none"
    GRADIENTS = "gradients"
    ACTIVATIONS = "activations"
    TRIALS = "trials"


@dataclass(frozen=True)
class Basis:
    """What scores rest on.

    Attributes:
        tensors: the stored tensors.
        seed: for criteria that draw.
        evidence: runs of the unpruned model; None where no data may be used.
    """

    tensors: Tensors
    seed: int
    evidence: Evidence | None = None

    @property
    def data(self) -> Evidence:
        """The evidence.

        Raises:
            JobFailureError: INTERNAL: there is none.
        """
        if self.evidence is None:
            raise JobFailureError(
                Reason.INTERNAL, "A criterion that needs data was asked without any; please report this."
            )
        return self.evidence


Score: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
WeightScores: TypeAlias = Callable[[Sequence[str], Basis], Mapping[str, torch.Tensor]]
ChannelScores: TypeAlias = Callable[[Scored, Basis], Mapping[int, torch.Tensor]]


@dataclass(frozen=True)
class Criterion:
    """Scores single weights, channels, or both; the lowest scores are removed first.

    All scores are finite and not negative. What a function leaves out of its answer has no score, and stays for `unscored`.

    Attributes:
        name: as in requests.
        summary: one line for people.
        source: authors, year, arXiv or venue.
        formula: of a single weight's score, or a channel's, for the documentation.
        needs: what it asks of the data.
        score: (weight, seed) -> scores of the weight's shape, float32 or float64, from the weight alone. The seed is the
            weight's own; most criteria do not use it.
        score_weights: (names, basis) -> scores of each weight's shape, for criteria that need data.
        score_channels: (scored, basis) -> a score per channel, float64, comparable between groups. None: the sum of
            `score` over the channel's elements, relative to the layer's mean.
        granularities: what it can be asked for.
        of_scales: the learned scales of normalizations count, instead of the request's weights.
        unscored: why a weight or a group that has no score stays, and what to do.
    """

    name: str
    summary: str
    source: str
    formula: str = ""
    needs: Needs = Needs.NONE
    score: Score | None = None
    score_weights: WeightScores | None = None
    score_channels: ChannelScores | None = None
    granularities: tuple[Granularity, ...] = EVERYTHING
    of_scales: bool = False
    unscored: str = "none of the tensors that go together is a weight, so nothing says how much they matter"
