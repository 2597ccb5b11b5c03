"""What a feature of the condition language is to the engine: a function of the data at its level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pruning_server.spec.request import MultipleTestingCorrection


@dataclass(frozen=True)
class GradientMoments:
    """Of one kernel: means over samples of the loss's gradient and of its square, in the kernel's shape; float64."""

    mean: torch.Tensor
    square: torch.Tensor
    samples: int


@dataclass(frozen=True)
class Layer:
    """A stored kernel, and what is known of it.

    Attributes:
        tensor: the kernel; read, never written.
        path: the layer's path in the model.
        kind: `conv`, `linear`, `embedding` or `recurrent`.
        index: its place among the `count` layers of the model, from 0.
        macs: multiply-accumulates for one sample; None where they are not known.
        gradients: what the fit samples say; runs the model when called.
        sensitivity: how much the metric falls when half of the layer goes; runs the model when called.
    """

    tensor: torch.Tensor
    path: str
    kind: str
    index: int
    count: int
    macs: int | None
    gradients: Callable[[], GradientMoments]
    sensitivity: Callable[[], float]


@dataclass(frozen=True)
class Activations:
    """What a consumer takes of the channels of a group, over samples and places; float64.

    Attributes:
        count: values per channel.
        zeros: [channels] how many of them are exactly 0.
        sums: [channels].
        products: [channels, channels] sums of products of pairs of channels.
    """

    count: int
    zeros: torch.Tensor
    sums: torch.Tensor
    products: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """[channels]."""
        return self.sums / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """[channels, channels]."""
        return self.products / self.count - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Relation:
    """How channels relate to those that stay.

    Attributes:
        values: [channels]; NaN where there is none.
        partners: [channels] int64, the kept channel that each is most like; None where it is like no single one.
    """

    values: torch.Tensor
    partners: torch.Tensor | None


Relate: TypeAlias = Callable[[torch.Tensor], Relation]
"""From [channels] bool, which channels stay, to the relation of each channel with the others of them."""


@dataclass(frozen=True)
class WeightFeature:
    """A value per weight, float64 in the kernel's shape."""

    name: str
    compute: Callable[[Layer], torch.Tensor]


@dataclass(frozen=True)
class LayerFeature:
    """One value per layer; NaN where it has none."""

    name: str
    compute: Callable[[Layer], float | str]


@dataclass(frozen=True)
class SliceFeature:
    """A value per channel, from the weights that make it: [channels, elements] in float64."""

    name: str
    compute: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ActivationFeature:
    """A value per channel, from what a consumer takes of it."""

    name: str
    compute: Callable[[Activations], torch.Tensor]


@dataclass(frozen=True)
class SliceRelation:
    """A value per channel that depends on which others stay, from the weights of all members of a group."""

    name: str
    prepare: Callable[[Sequence[torch.Tensor]], Relate]


@dataclass(frozen=True)
class ActivationRelation:
    """A value per channel that depends on which others stay, from what all consumers of a group take."""

    name: str
    prepare: Callable[[Sequence[Activations]], Relate]


@dataclass(frozen=True)
class CorrectedFeature:
    """A p-value per channel: tests come in as raw p-values, all of one job together, and leave it corrected."""

    name: str
    correct: Callable[[Sequence[float], MultipleTestingCorrection], list[float]]


Feature: TypeAlias = (
    WeightFeature
    | LayerFeature
    | SliceFeature
    | ActivationFeature
    | SliceRelation
    | ActivationRelation
    | CorrectedFeature
)
