"""What computes the features of the condition language. One file per feature and one line in the registry here.

What a feature means, and for the documentation where it comes from, stands in `spec/condition/catalogue.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pruning_server.pruning.features import (
    abs_weight,
    activation_correlation,
    activation_mean,
    activation_variance,
    apoz,
    depth,
    fisher,
    fpgm_distance,
    gradient,
    index,
    kind,
    l1,
    l2,
    layer_mean,
    layer_std,
    macs,
    name,
    p_harm,
    redundancy,
    sensitivity,
    sparsity,
    wald_p,
    weight,
    weight_correlation,
    z_score,
)
from pruning_server.pruning.features.base import Feature

__all__ = ["FEATURES", "Feature"]

FEATURES: Mapping[str, Feature] = MappingProxyType(
    {
        module.FEATURE.name: module.FEATURE
        for module in (
            weight,
            abs_weight,
            z_score,
            gradient,
            fisher,
            wald_p,
            l1,
            l2,
            fpgm_distance,
            weight_correlation,
            activation_correlation,
            redundancy,
            apoz,
            activation_mean,
            activation_variance,
            p_harm,
            layer_mean,
            layer_std,
            sensitivity,
            kind,
            name,
            index,
            depth,
            macs,
            sparsity,
        )
    }
)
"""Every feature by its name."""
