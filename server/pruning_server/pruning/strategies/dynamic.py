"""What dynamic pruning can be asked for; how it goes on is in `pruning.schedules` and `pruning.dynamic`."""

from __future__ import annotations

from pruning_server.spec.request import Granularity, TargetKind

NAME = "dynamic"
SUMMARY = (
    "over the model's life: a schedule switches weights, channels or heads off while the model is fine-tuned, and they are"
    " removed at its end"
)
GRANULARITIES = (Granularity.CHANNEL, Granularity.HEAD, Granularity.WEIGHT, Granularity.NM)
TARGETS = (TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO)
