"""The features that a condition may name: one entry each. What computes them is in `pruning/features/`, by the same names.

`docs/conditions.md` is this catalogue in a table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from pruning_server.spec.base import Value


class FeatureLevel(enum.StrEnum):
    """What has one value of the feature: each weight, each channel of a layer, or each layer."""

    WEIGHT = "weight"
    CHANNEL = "channel"
    LAYER = "layer"


class Role(enum.StrEnum):
    """How the feature's values come about.

    PLAIN ones do not depend on what is removed. RELATIVE ones compare a channel with those that stay: they change with
    every channel that goes. TESTED ones are p-values of what a removal does, corrected for the number of tests.
    """

    PLAIN = "plain"
    RELATIVE = "relative"
    TESTED = "tested"


class Order(enum.StrEnum):
    """Which values of the feature go first where not everything that qualifies may go."""

    LOW = "low"
    HIGH = "high"
    NONE = "none"


class FeatureInfo(Value, frozen=True, kw_only=True):
    """One feature. `is_text`: its values are texts, one of `choices` where there are any; else numbers."""

    name: str
    level: FeatureLevel
    formula: str
    source: str
    cost: str
    role: Role = Role.PLAIN
    order: Order = Order.NONE
    is_text: bool = False
    choices: tuple[str, ...] = ()


_WEIGHTS = "the weights"
_BACKWARD = "a backward run of up to 512 fit samples, one by one"
_FORWARD = "a run of up to 512 fit samples"
_NOTHING = "nothing"

_ALL = (
    FeatureInfo(
        name="weight",
        level=FeatureLevel.WEIGHT,
        formula="w",
        source="the value itself",
        cost=_WEIGHTS,
    ),
    FeatureInfo(
        name="abs_weight",
        level=FeatureLevel.WEIGHT,
        formula="|w|",
        source="Han, Pool, Tran, Dally 2015, arXiv:1506.02626",
        cost=_WEIGHTS,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="z_score",
        level=FeatureLevel.WEIGHT,
        formula="(w - layer_mean) / layer_std",
        source="the standard score",
        cost=_WEIGHTS,
    ),
    FeatureInfo(
        name="gradient",
        level=FeatureLevel.WEIGHT,
        formula="mean over samples of dL/dw, L the recovery's loss",
        source="Mozer, Smolensky 1989, Skeletonization, NIPS 1",
        cost=_BACKWARD,
    ),
    FeatureInfo(
        name="fisher",
        level=FeatureLevel.WEIGHT,
        formula="mean over samples of (dL/dw)^2, each sample alone: the diagonal of the empirical Fisher information",
        source="Theis, Korshunova, Tejani, Huszar 2018, arXiv:1801.05787",
        cost=_BACKWARD,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="wald_p",
        level=FeatureLevel.WEIGHT,
        formula="two-sided p-value of Wald's test that w = 0: erfc(sqrt(W / 2)), W = n * fisher * w^2, n the fit samples",
        source="Wald 1943, Trans. Amer. Math. Soc. 54:426-482",
        cost=_BACKWARD,
        order=Order.HIGH,
    ),
    FeatureInfo(
        name="l1",
        level=FeatureLevel.CHANNEL,
        formula="sum of |w| over the weights that make the channel",
        source="Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710",
        cost=_WEIGHTS,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="l2",
        level=FeatureLevel.CHANNEL,
        formula="sqrt of the sum of w^2 over the weights that make the channel",
        source="He, Kang, Dong, Fu, Yang 2018, arXiv:1808.06866",
        cost=_WEIGHTS,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="fpgm_distance",
        level=FeatureLevel.CHANNEL,
        formula="mean Euclidean distance of the channel's weights to those of the other channels of its group",
        source="He, Liu, Wang, Hu, Yang 2019, arXiv:1811.00250",
        cost=_WEIGHTS,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="weight_correlation",
        level=FeatureLevel.CHANNEL,
        formula="largest |Pearson correlation| of the channel's weights with those of a kept channel of its group",
        source="Wang, Fu, Guo, Cai, He 2019, arXiv:1906.10337; merged as in Srinivas, Babu 2015, arXiv:1507.06149",
        cost="the weights, and a run of up to 512 fit samples for the merge",
        role=Role.RELATIVE,
        order=Order.HIGH,
    ),
    FeatureInfo(
        name="activation_correlation",
        level=FeatureLevel.CHANNEL,
        formula="largest |Pearson correlation| of the channel's activations with those of a kept channel of its group",
        source="Suau, Zappella, Apostoloff 2018, arXiv:1807.10585 (correlation of responses)",
        cost=_FORWARD,
        role=Role.RELATIVE,
        order=Order.HIGH,
    ),
    FeatureInfo(
        name="redundancy",
        level=FeatureLevel.CHANNEL,
        formula="R^2 of the least squares of the channel's activations on those of the other kept channels of its group",
        source="the multiple correlation coefficient; for pruning Luo, Wu, Lin 2017, arXiv:1707.06342",
        cost=_FORWARD,
        role=Role.RELATIVE,
        order=Order.HIGH,
    ),
    FeatureInfo(
        name="apoz",
        level=FeatureLevel.CHANNEL,
        formula="share of the channel's activations that are exactly 0",
        source="Hu, Peng, Tai, Tang 2016, arXiv:1607.03250",
        cost=_FORWARD,
        order=Order.HIGH,
    ),
    FeatureInfo(
        name="activation_mean",
        level=FeatureLevel.CHANNEL,
        formula="mean of the channel's activations",
        source="Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440",
        cost=_FORWARD,
    ),
    FeatureInfo(
        name="activation_variance",
        level=FeatureLevel.CHANNEL,
        formula="variance of the channel's activations",
        source="Polyak, Wolf 2015, IEEE Access 3:2163-2175",
        cost=_FORWARD,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="p_harm",
        level=FeatureLevel.CHANNEL,
        formula="p-value of the hypothesis that removing the channel costs at least the margin, paired over the select"
        " samples, corrected for the number of channels tested",
        source="exact binomial test on harmed samples; Holm 1979, Scand. J. Statist. 6:65-70; Benjamini, Hochberg 1995, JRSS B"
        " 57:289-300",
        cost="a run of the select samples per channel that is left to be tested",
        role=Role.TESTED,
        order=Order.LOW,
    ),
    FeatureInfo(
        name="layer_mean",
        level=FeatureLevel.LAYER,
        formula="mean of the layer's weights",
        source="the arithmetic mean",
        cost=_WEIGHTS,
    ),
    FeatureInfo(
        name="layer_std",
        level=FeatureLevel.LAYER,
        formula="standard deviation of the layer's weights",
        source="the square root of the mean squared deviation",
        cost=_WEIGHTS,
    ),
    FeatureInfo(
        name="sensitivity",
        level=FeatureLevel.LAYER,
        formula="how much the metric falls on the select samples when the smaller half of the layer's weights, or of its channels (l2), is switched off",
        source="Han, Pool, Tran, Dally 2015, arXiv:1506.02626; Li et al. 2017, arXiv:1608.08710",
        cost="a run of the select samples per layer",
        order=Order.LOW,
    ),
    FeatureInfo(
        name="kind",
        level=FeatureLevel.LAYER,
        formula="what the layer is",
        source="the graph",
        cost=_NOTHING,
        is_text=True,
        choices=("conv", "linear", "embedding", "recurrent"),
    ),
    FeatureInfo(
        name="name",
        level=FeatureLevel.LAYER,
        formula="the layer's path in the model, e.g. encoder.conv1",
        source="the graph",
        cost=_NOTHING,
        is_text=True,
    ),
    FeatureInfo(
        name="index",
        level=FeatureLevel.LAYER,
        formula="the layer's place among the layers of the model, from 0",
        source="the order in which the model holds them",
        cost=_NOTHING,
    ),
    FeatureInfo(
        name="depth",
        level=FeatureLevel.LAYER,
        formula="index / (number of layers - 1): 0 for the first layer, 1 for the last",
        source="the order in which the model holds them",
        cost=_NOTHING,
    ),
    FeatureInfo(
        name="macs",
        level=FeatureLevel.LAYER,
        formula="multiply-accumulates of the layer for one sample",
        source="counted on the caller's samples",
        cost=_NOTHING,
    ),
    FeatureInfo(
        name="sparsity",
        level=FeatureLevel.LAYER,
        formula="share of the layer's weights that are 0 before pruning",
        source="counted",
        cost=_WEIGHTS,
    ),
)

FEATURES: Mapping[str, FeatureInfo] = MappingProxyType({info.name: info for info in _ALL})
"""Every feature by its name."""
