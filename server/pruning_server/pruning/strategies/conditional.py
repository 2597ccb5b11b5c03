"""Conditional pruning: an expression over documented features decides what goes, per weight, channel or head.

The language: `spec/condition/`; its evaluation: `pruning/conditions/`; what the features are: `pruning/features/`.
"""

from __future__ import annotations

from pruning_server.spec.request import Granularity, TargetKind

NAME = "conditional"
SUMMARY = (
    "a condition decides: every weight, channel or head for which an expression over documented features holds goes, or of"
    " those as many as a target asks for; correlated channels are merged into one that stays; or a risk: as far as it is"
    " certified that no more than so much is lost"
)
GRANULARITIES = (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD)
TARGETS = (TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO)
