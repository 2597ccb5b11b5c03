"""The strategies of a request between the wire and their values."""

from __future__ import annotations

from typing import Any

from pruning_api.v1 import spec_pb2
from pruning_server.service import converters_common as common
from pruning_server.service.converters_common import Findings
from pruning_server.spec.condition import natural_granularity
from pruning_server.spec.problems import missing
from pruning_server.spec.request import (
    ChannelConstraints,
    ConditionalStrategy,
    DynamicStrategy,
    Granularity,
    MultipleTestingCorrection,
    NmPattern,
    RiskCondition,
    Scope,
    StaticStrategy,
    Strategy,
    TargetKind,
)

STRUCTURAL = frozenset({Granularity.CHANNEL, Granularity.HEAD})


def strategy_from_wire(message: spec_pb2.PruningSpec, findings: Findings) -> Strategy:
    """Returns the strategy; one that is not set becomes a problem."""
    match message.WhichOneof("strategy"):
        case "static":
            return _static(message.static, message.WhichOneof("target"), findings)
        case "dynamic":
            return _dynamic(message.dynamic, findings)
        case "conditional":
            return _conditional(message.conditional, findings)
        case _:
            findings.add(missing("spec.strategy", "is needed: one of static, dynamic, conditional"))
            # Stands in for what is missing; this one asks nothing of the rest of the request.
            return ConditionalStrategy(condition="abs_weight < 1")


def strategy_to_wire(strategy: Strategy) -> dict[str, Any]:
    """Returns the field of PruningSpec that the strategy sets, with its message."""
    match strategy:
        case StaticStrategy():
            return {"static": _static_to_wire(strategy)}
        case DynamicStrategy():
            return {"dynamic": _dynamic_to_wire(strategy)}
        case ConditionalStrategy():
            return {"conditional": _conditional_to_wire(strategy)}


def _static(message: spec_pb2.StaticStrategy, target: str | None, findings: Findings) -> StaticStrategy:
    prefix = "spec.static"
    asked = findings.member(common.GRANULARITIES, message.granularity, f"{prefix}.granularity")
    granularity = asked or Granularity.WEIGHT
    # A search for a drop makes many plans, where sensitivity would be measured each time.
    measured = granularity in STRUCTURAL and target != TargetKind.MAX_ACCURACY_DROP
    return StaticStrategy(
        granularity=granularity,
        nm_pattern=_pattern(message.nm_pattern) if message.HasField("nm_pattern") else None,
        criterion=message.criterion or StaticStrategy().criterion,
        scope=findings.member(common.SCOPES, message.scope, f"{prefix}.scope")
        or (Scope.SENSITIVITY if measured else Scope.GLOBAL),
        include_biases=message.include_biases,
        include_norms=message.include_norms,
        channels=_channels(message.channels),
    )


def _dynamic(message: spec_pb2.DynamicStrategy, findings: Findings) -> DynamicStrategy:
    prefix = "spec.dynamic"
    asked = findings.member(common.GRANULARITIES, message.granularity, f"{prefix}.granularity")
    granularity = asked or Granularity.CHANNEL
    return DynamicStrategy(
        granularity=granularity,
        nm_pattern=_pattern(message.nm_pattern) if message.HasField("nm_pattern") else None,
        criterion=message.criterion or None,
        scope=findings.member(common.SCOPES, message.scope, f"{prefix}.scope")
        or (Scope.SENSITIVITY if granularity in STRUCTURAL else Scope.GLOBAL),
        schedule=message.schedule or None,
        continue_from_job_id=message.continue_from_job_id or None,
        inference_gate=message.inference_gate,
        channels=_channels(message.channels),
    )


def _conditional(message: spec_pb2.ConditionalStrategy, findings: Findings) -> ConditionalStrategy:
    prefix = "spec.conditional"
    granularity = findings.member(common.GRANULARITIES, message.granularity, f"{prefix}.granularity")
    correction = findings.member(common.CORRECTIONS, message.correction, f"{prefix}.correction")
    has_risk = message.WhichOneof("rule") == "risk"
    risk = RiskCondition(max_loss=message.risk.max_loss, error_probability=message.risk.error_probability)
    return ConditionalStrategy(
        granularity=granularity or natural_granularity(message.condition),
        condition=message.condition or None,
        risk=risk if has_risk else None,
        margin=message.margin or None,
        correction=correction or MultipleTestingCorrection.HOLM,
        channels=_channels(message.channels),
    )


def _pattern(message: spec_pb2.NmPattern) -> NmPattern:
    return NmPattern(n=message.n, m=message.m)


def _channels(message: spec_pb2.ChannelConstraints) -> ChannelConstraints:
    return ChannelConstraints(min_channels=message.min_channels or 1, multiple=message.multiple or None)


def _static_to_wire(strategy: StaticStrategy) -> spec_pb2.StaticStrategy:
    return spec_pb2.StaticStrategy(
        granularity=common.GRANULARITIES.to_wire(strategy.granularity),
        nm_pattern=_pattern_to_wire(strategy.nm_pattern),
        criterion=strategy.criterion,
        scope=common.SCOPES.to_wire(strategy.scope),
        include_biases=strategy.include_biases,
        include_norms=strategy.include_norms,
        channels=_channels_to_wire(strategy.channels),
    )


def _dynamic_to_wire(strategy: DynamicStrategy) -> spec_pb2.DynamicStrategy:
    return spec_pb2.DynamicStrategy(
        granularity=common.GRANULARITIES.to_wire(strategy.granularity),
        nm_pattern=_pattern_to_wire(strategy.nm_pattern),
        criterion=strategy.criterion or "",
        scope=common.SCOPES.to_wire(strategy.scope),
        schedule=strategy.schedule or "",
        continue_from_job_id=strategy.continue_from_job_id or "",
        inference_gate=strategy.inference_gate,
        channels=_channels_to_wire(strategy.channels),
    )


def _conditional_to_wire(strategy: ConditionalStrategy) -> spec_pb2.ConditionalStrategy:
    rule: dict[str, Any] = {}
    if strategy.risk is not None:
        rule["risk"] = spec_pb2.RiskCondition(
            max_loss=strategy.risk.max_loss, error_probability=strategy.risk.error_probability
        )
    elif strategy.condition:
        rule["condition"] = strategy.condition
    return spec_pb2.ConditionalStrategy(
        granularity=common.GRANULARITIES.to_wire(strategy.granularity),
        margin=strategy.margin or 0.0,
        correction=common.CORRECTIONS.to_wire(strategy.correction),
        channels=_channels_to_wire(strategy.channels),
        **rule,
    )


def _pattern_to_wire(pattern: NmPattern | None) -> spec_pb2.NmPattern | None:
    return None if pattern is None else spec_pb2.NmPattern(n=pattern.n, m=pattern.m)


def _channels_to_wire(channels: ChannelConstraints) -> spec_pb2.ChannelConstraints:
    return spec_pb2.ChannelConstraints(min_channels=channels.min_channels, multiple=channels.multiple or 0)
