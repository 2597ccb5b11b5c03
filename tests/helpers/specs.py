"""Requests: a good one, and hypothesis strategies over all that the wire can carry."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pruning_server.spec.request import (
    ArtifactRef,
    ChannelConstraints,
    ConditionalStrategy,
    DynamicAxes,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Layout,
    Limits,
    Loss,
    MethodSamples,
    MultipleTestingCorrection,
    NmPattern,
    Preprocessing,
    PruningSpec,
    Recovery,
    RiskCondition,
    Robustness,
    ScalarArgument,
    Scope,
    SplitFractions,
    StaticStrategy,
    Target,
    TargetKind,
    Task,
    Verdict,
)


def good_spec(**fields: Any) -> PruningSpec:
    """A request that passes every check; `fields` replace what differs."""
    defaults: dict[str, Any] = {
        "model": ArtifactRef(artifact_id="model"),
        "validation": ArtifactRef(artifact_id="validation"),
        "strategy": StaticStrategy(),
        "target": Target(kind=TargetKind.SPARSITY, value=0.5),
    }
    return PruningSpec(**(defaults | fields))


# The wire has no "unset" for a number of 0 or an empty text: there they mean the default, which the value carries.
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
uint32 = st.integers(1, 2**32 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
some_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)

refs = st.builds(
    ArtifactRef, artifact_id=some_text, sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)
)
channels = st.builds(ChannelConstraints, min_channels=uint32, multiple=st.none() | uint32)
patterns = st.none() | st.builds(NmPattern, n=uint32, m=uint32)
static = st.builds(
    StaticStrategy,
    granularity=st.sampled_from(Granularity),
    nm_pattern=patterns,
    criterion=some_text,
    scope=st.sampled_from(Scope),
    include_biases=st.booleans(),
    include_norms=st.booleans(),
    channels=channels,
)
dynamic = st.builds(
    DynamicStrategy,
    granularity=st.sampled_from(Granularity),
    nm_pattern=patterns,
    criterion=st.none() | some_text,
    scope=st.sampled_from(Scope),
    schedule=st.none() | some_text,
    continue_from_job_id=st.none() | some_text,
    inference_gate=st.booleans(),
    channels=channels,
)
_rules = st.one_of(
    st.just({}),
    st.builds(lambda condition: {"condition": condition}, some_text),
    st.builds(
        lambda loss, probability: {"risk": RiskCondition(max_loss=loss, error_probability=probability)},
        numbers,
        numbers,
    ),
)
conditional = st.builds(
    lambda rule, **rest: ConditionalStrategy(**rule, **rest),
    _rules,
    granularity=st.sampled_from(Granularity),
    margin=st.none() | positive,
    correction=st.sampled_from(MultipleTestingCorrection),
    channels=channels,
)
splits = st.builds(SplitFractions, fit=positive, select=numbers, report=numbers, calibrate=numbers)
evaluations = st.builds(
    Evaluation,
    margin=numbers,
    confidence_level=positive,
    required_verdict=st.none() | st.sampled_from(Verdict),
    split=splits,
    latency_batch_size=uint32,
    batch_size=st.none() | uint32,
    robustness=st.sampled_from(Robustness),
    include_samples=st.booleans(),
)
arguments = st.builds(
    ScalarArgument,
    position=st.integers(0, 2**32 - 1),
    value=st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), numbers, text),
)
pruning_specs = st.builds(
    PruningSpec,
    model=refs,
    validation=refs,
    train=st.none() | refs,
    strategy=static | dynamic | conditional,
    target=st.none() | st.builds(Target, kind=st.sampled_from(TargetKind), value=numbers),
    device=some_text,
    fine_tune=st.builds(
        FineTune,
        epochs=st.none() | st.integers(0, 2**32 - 1),
        learning_rate=st.none() | numbers,
        batch_size=st.none() | uint32,
        weight_decay=numbers,
        dropout=st.none() | numbers,
    ),
    recovery=st.builds(Recovery, disabled=st.booleans()),
    evaluation=evaluations,
    preprocessing=st.builds(
        Preprocessing,
        scale=st.none() | positive,
        mean=st.lists(numbers, max_size=4).map(tuple),
        std=st.lists(numbers, max_size=4).map(tuple),
        layout=st.none() | st.sampled_from(Layout),
    ),
    task=st.none() | st.sampled_from(Task),
    loss=st.none() | st.sampled_from(Loss),
    loss_module=st.none() | refs,
    arguments=st.lists(arguments, max_size=4).map(tuple),
    output_selector=text,
    method_samples=st.lists(st.builds(MethodSamples, method=text, samples=refs), max_size=3).map(tuple),
    exclude_layers=st.lists(text, max_size=3).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    limits=st.builds(Limits, memory_bytes=st.none() | st.integers(1, 2**64 - 1), max_attempts=st.none() | uint32),
    dynamic_axes=st.lists(
        st.builds(DynamicAxes, input=uint32, axes=st.lists(uint32, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    timeout_seconds=st.none() | st.integers(-(10**11), 10**11).map(lambda milliseconds: milliseconds / 1000),
)
