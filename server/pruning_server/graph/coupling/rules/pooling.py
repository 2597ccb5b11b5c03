"""Pools and interpolation: they work on the last axes and leave the others alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named


def _over_last(count: int) -> Rule:
    def rule(call: Call) -> list[Any]:
        value = call.first()
        dims = len(value.shape)
        return call.alike(call.held(value, range(dims - count, dims), "a window or grid goes over this axis"))

    return rule


RULES: Mapping[str, Rule] = {
    **named(
        """
        max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool1d_with_indices
        upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d
        """,
        _over_last(1),
    ),
    **named(
        """
        max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d
        upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa
        """,
        _over_last(2),
    ),
    **named(
        """
        max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d max_pool3d_with_indices _adaptive_avg_pool3d
        upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d
        """,
        _over_last(3),
    ),
}
