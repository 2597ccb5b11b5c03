"""Every rule of a request: what passes, what does not, and under which field it says so."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from helpers.specs import good_spec
from pruning_server.errors import InvalidRequestError, NotImplementedFeatureError, Reason
from pruning_server.spec.base import from_json, to_json
from pruning_server.spec.problems import refuse
from pruning_server.spec.request import (
    JUDGED_SCHEDULE,
    ArtifactRef,
    ChannelConstraints,
    ConditionalStrategy,
    DynamicAxes,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    Limits,
    Loss,
    MethodSamples,
    NmPattern,
    Preprocessing,
    PruningSpec,
    Recovery,
    RiskCondition,
    ScalarArgument,
    Scope,
    SplitFractions,
    StaticStrategy,
    Target,
    TargetKind,
    Task,
)
from pruning_server.spec.validation import check_implemented, check_spec, find_label_problems, find_problems

NAN, INFINITY = math.nan, math.inf


def fields_of(spec: PruningSpec) -> list[str]:
    """The fields that are refused; empty if none is."""
    try:
        check_spec(spec)
    except InvalidRequestError as error:
        return [violation.field for violation in error.violations]
    return []


def target(kind: TargetKind, value: float) -> dict[str, Any]:
    return {"target": Target(kind=kind, value=value)}


def nm(n: int, m: int) -> dict[str, Any]:
    return {"strategy": StaticStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=n, m=m))}


def structural(granularity: Granularity, kind: TargetKind, value: float) -> dict[str, Any]:
    return {"strategy": StaticStrategy(granularity=granularity), **target(kind, value)}


GOOD: dict[str, dict[str, Any]] = {
    "plain": {},
    "threshold": target(TargetKind.THRESHOLD, 1e-30),
    "threshold above 1": target(TargetKind.THRESHOLD, 1e6),
    "sparsity 0": target(TargetKind.SPARSITY, 0.0),
    "sparsity just below 1": target(TargetKind.SPARSITY, 1 - 2**-53),
    "ratio 1": structural(Granularity.CHANNEL, TargetKind.MACS_RATIO, 1.0),
    "no accuracy drop": target(TargetKind.MAX_ACCURACY_DROP, 0.0),
    "a GPU": {"device": "cuda:7"},
    "any GPU": {"device": "cuda"},
    "no epochs": {"fine_tune": FineTune(epochs=0)},
    "most epochs": {"fine_tune": FineTune(epochs=10_000)},
    "no recovery, and no epochs": {"fine_tune": FineTune(epochs=0), "recovery": Recovery(disabled=True)},
    "split of tenths": {"evaluation": Evaluation(split=SplitFractions(fit=0.1, select=0.2, report=0.7))},
    "calibrate": {
        "evaluation": Evaluation(split=SplitFractions(fit=0.4, select=0.1, report=0.3, calibrate=0.2))
    },
    "only a mean": {"preprocessing": Preprocessing(mean=(0.5, 0.4))},
    "a negative mean": {"preprocessing": Preprocessing(mean=(-1.0,), std=(2.0,))},
    "arguments": {
        "arguments": (
            ScalarArgument(position=0, value=False),
            ScalarArgument(position=2, value=16000),
            ScalarArgument(position=1, value=-0.5),
            ScalarArgument(position=3, value=""),
        )
    },
    "2:4": nm(2, 4),
    "largest seed": {"seed": 2**63 - 1},
    "names in any script": {"exclude_layers": ("encoder.*", "слой\u3000層")},
    "conditional without a target": {"strategy": ConditionalStrategy(condition="abs_weight < 0.1"), "target": None},
    "risk": {
        "strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.01, error_probability=0.05)), "target": None
    },
    "checked hash, either case": {"model": ArtifactRef(artifact_id="m", sha256="aB" * 32)},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_passes(name: str) -> None:
    assert fields_of(good_spec(**GOOD[name])) == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"target": None}, "spec.target"),
    "threshold 0": (target(TargetKind.THRESHOLD, 0.0), "spec.threshold"),
    "threshold negative": (target(TargetKind.THRESHOLD, -0.1), "spec.threshold"),
    "threshold infinite": (target(TargetKind.THRESHOLD, INFINITY), "spec.threshold"),
    "threshold nan": (target(TargetKind.THRESHOLD, NAN), "spec.threshold"),
    "sparsity 1": (target(TargetKind.SPARSITY, 1.0), "spec.sparsity"),
    "sparsity negative": (target(TargetKind.SPARSITY, -1e-9), "spec.sparsity"),
    "sparsity nan": (target(TargetKind.SPARSITY, NAN), "spec.sparsity"),
    "macs 0": (target(TargetKind.MACS_RATIO, 0.0), "spec.macs_ratio"),
    "latency above 1": (target(TargetKind.LATENCY_RATIO, 1.0001), "spec.latency_ratio"),
    "parameters nan": (target(TargetKind.PARAMETER_RATIO, NAN), "spec.parameter_ratio"),
    "drop 1": (target(TargetKind.MAX_ACCURACY_DROP, 1.0), "spec.max_accuracy_drop"),
    "no model": ({"model": ArtifactRef(artifact_id="")}, "spec.model"),
    "no validation": ({"validation": ArtifactRef(artifact_id="")}, "spec.validation"),
    "empty train": ({"train": ArtifactRef(artifact_id="")}, "spec.train"),
    "hash too short": ({"model": ArtifactRef(artifact_id="m", sha256="ab")}, "spec.model.sha256"),
    "hash of other digits": ({"train": ArtifactRef(artifact_id="m", sha256="g" * 64)}, "spec.train.sha256"),
    "axes of no input": ({"dynamic_axes": (DynamicAxes(input=64, axes=(2,)),)}, "spec.dynamic_axes[0].input"),
    "axes of an input twice": ({"dynamic_axes": (DynamicAxes(input=0, axes=(2,)),) * 2}, "spec.dynamic_axes[1].input"),
    "no axis": ({"dynamic_axes": (DynamicAxes(input=0, axes=()),)}, "spec.dynamic_axes[0].axes"),
    "an axis twice": ({"dynamic_axes": (DynamicAxes(input=0, axes=(2, 2)),)}, "spec.dynamic_axes[0].axes"),
    "the batch axis": ({"dynamic_axes": (DynamicAxes(input=0, axes=(0, 2)),)}, "spec.dynamic_axes[0].axes"),
    "axis 16": ({"dynamic_axes": (DynamicAxes(input=0, axes=(16,)),)}, "spec.dynamic_axes[0].axes[0]"),
    "axes of many inputs": (
        {"dynamic_axes": tuple(DynamicAxes(input=0, axes=(1,)) for _ in range(65))},
        "spec.dynamic_axes",
    ),
    "device tpu": ({"device": "tpu"}, "spec.device"),
    "device cuda:": ({"device": "cuda:"}, "spec.device"),
    "device cuda:-1": ({"device": "cuda:-1"}, "spec.device"),
    "device cuda:01": ({"device": "cuda:01"}, "spec.device"),
    "device CPU": ({"device": "CPU"}, "spec.device"),
    "device with a line": ({"device": "cpu\n"}, "spec.device"),
    "too many epochs": ({"fine_tune": FineTune(epochs=10_001)}, "spec.fine_tune.epochs"),
    "epochs without recovery": (
        {"fine_tune": FineTune(epochs=3), "recovery": Recovery(disabled=True)},
        "spec.fine_tune.epochs",
    ),
    "rate 0": ({"fine_tune": FineTune(learning_rate=0.0)}, "spec.fine_tune.learning_rate"),
    "rate nan": ({"fine_tune": FineTune(learning_rate=NAN)}, "spec.fine_tune.learning_rate"),
    "rate infinite": ({"fine_tune": FineTune(learning_rate=INFINITY)}, "spec.fine_tune.learning_rate"),
    "batch of 0": ({"fine_tune": FineTune(batch_size=0)}, "spec.fine_tune.batch_size"),
    "batch too large": ({"fine_tune": FineTune(batch_size=2**32 - 1)}, "spec.fine_tune.batch_size"),
    "decay negative": ({"fine_tune": FineTune(weight_decay=-0.1)}, "spec.fine_tune.weight_decay"),
    "decay nan": ({"fine_tune": FineTune(weight_decay=NAN)}, "spec.fine_tune.weight_decay"),
    "margin 0": ({"evaluation": Evaluation(margin=0.0)}, "spec.evaluation.margin"),
    "margin 1": ({"evaluation": Evaluation(margin=1.0)}, "spec.evaluation.margin"),
    "margin nan": ({"evaluation": Evaluation(margin=NAN)}, "spec.evaluation.margin"),
    "confidence 1": ({"evaluation": Evaluation(confidence_level=1.0)}, "spec.evaluation.confidence_level"),
    "confidence 0.5": ({"evaluation": Evaluation(confidence_level=0.5)}, "spec.evaluation.confidence_level"),
    "latency batch": ({"evaluation": Evaluation(latency_batch_size=0)}, "spec.evaluation.latency_batch_size"),
    "evaluation batch": ({"evaluation": Evaluation(batch_size=0)}, "spec.evaluation.batch_size"),
    "split sum": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.6, select=0.2, report=0.3))},
        "spec.evaluation.split",
    ),
    "split just off": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.6, select=0.15, report=0.25 + 1e-8))},
        "spec.evaluation.split",
    ),
    "split without report": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.5, select=0.5, report=0.0))},
        "spec.evaluation.split.report",
    ),
    "split without fit": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.0, select=0.5, report=0.5))},
        "spec.evaluation.split.fit",
    ),
    "split without select": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.5, select=0.0, report=0.5))},
        "spec.evaluation.split.select",
    ),
    "split negative": (
        {"evaluation": Evaluation(split=SplitFractions(fit=0.6, select=0.25, report=0.25, calibrate=-0.1))},
        "spec.evaluation.split.calibrate",
    ),
    "split nan": (
        {"evaluation": Evaluation(split=SplitFractions(fit=NAN, select=0.5, report=0.5))},
        "spec.evaluation.split.fit",
    ),
    "scale nan": ({"preprocessing": Preprocessing(scale=NAN)}, "spec.preprocessing.scale"),
    "scale negative": ({"preprocessing": Preprocessing(scale=-1.0)}, "spec.preprocessing.scale"),
    "mean nan": ({"preprocessing": Preprocessing(mean=(0.0, NAN))}, "spec.preprocessing.mean[1]"),
    "std 0": ({"preprocessing": Preprocessing(std=(1.0, 0.0))}, "spec.preprocessing.std[1]"),
    "mean and std differ": (
        {"preprocessing": Preprocessing(mean=(0.0, 0.0), std=(1.0, 1.0, 1.0))},
        "spec.preprocessing.std",
    ),
    "two losses": (
        {"loss": Loss.MSE, "loss_module": ArtifactRef(artifact_id="loss")},
        "spec.loss_module",
    ),
    "position twice": (
        {"arguments": (ScalarArgument(position=1, value=1), ScalarArgument(position=1, value=2))},
        "spec.arguments[1].position",
    ),
    "argument nan": ({"arguments": (ScalarArgument(position=0, value=NAN),)}, "spec.arguments[0].value"),
    "argument infinite": ({"arguments": (ScalarArgument(position=0, value=INFINITY),)}, "spec.arguments[0].value"),
    "argument of 65 bits": ({"arguments": (ScalarArgument(position=0, value=2**63),)}, "spec.arguments[0].value"),
    "method twice": (
        {
            "method_samples": (
                MethodSamples(method="f", samples=ArtifactRef(artifact_id="a")),
                MethodSamples(method="f", samples=ArtifactRef(artifact_id="a")),
            )
        },
        "spec.method_samples[1].method",
    ),
    "samples missing": (
        {"method_samples": (MethodSamples(method="f", samples=ArtifactRef(artifact_id="")),)},
        "spec.method_samples[0].samples",
    ),
    "empty layer name": ({"exclude_layers": ("a", "")}, "spec.exclude_layers[1]"),
    "control character": ({"exclude_layers": ("a\x1b[2J",)}, "spec.exclude_layers[0]"),
    "seed of 64 bits": ({"seed": 2**63}, "spec.seed"),
    "memory 0": ({"limits": Limits(memory_bytes=0)}, "spec.limits.memory_bytes"),
    "attempts 0": ({"limits": Limits(max_attempts=0)}, "spec.limits.max_attempts"),
    "timeout 0": ({"timeout_seconds": 0.0}, "spec.timeout"),
    "timeout negative": ({"timeout_seconds": -1.0}, "spec.timeout"),
    "timeout above a year": ({"timeout_seconds": 366 * 24 * 3600.0}, "spec.timeout"),
    "4:2": (nm(4, 2), "spec.static.nm_pattern"),
    "0:4": (nm(0, 4), "spec.static.nm_pattern"),
    "4:4": (nm(4, 4), "spec.static.nm_pattern"),
    "n:m without a pattern": ({"strategy": StaticStrategy(granularity=Granularity.NM)}, "spec.static.nm_pattern"),
    "a pattern beside another sparsity": (nm(2, 4) | target(TargetKind.SPARSITY, 0.6), "spec.sparsity"),
    "a pattern beside a threshold": (nm(2, 4) | target(TargetKind.THRESHOLD, 0.5), "spec.threshold"),
    "a pattern without n:m": ({"strategy": StaticStrategy(nm_pattern=NmPattern(n=2, m=4))}, "spec.static.nm_pattern"),
    "dynamic pattern": (
        {"strategy": DynamicStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=4, m=2))},
        "spec.dynamic.nm_pattern",
    ),
    "channels 0": (
        {"strategy": StaticStrategy(channels=ChannelConstraints(min_channels=0))},
        "spec.static.channels.min_channels",
    ),
    "multiple 0": (
        {"strategy": DynamicStrategy(channels=ChannelConstraints(multiple=0))},
        "spec.dynamic.channels.multiple",
    ),
    "no rule": ({"strategy": ConditionalStrategy()}, "spec.conditional.rule"),
    "two rules": (
        {
            "strategy": ConditionalStrategy(
                condition="abs_weight < 1", risk=RiskCondition(max_loss=0.1, error_probability=0.1)
            )
        },
        "spec.conditional.rule",
    ),
    "risk 0": (
        {"strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.0, error_probability=0.1)), "target": None},
        "spec.conditional.risk.max_loss",
    ),
    "risk probability 1": (
        {"strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.1, error_probability=1.0)), "target": None},
        "spec.conditional.risk.error_probability",
    ),
    "risk and a target": (
        {"strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.1, error_probability=0.1))},
        "spec.sparsity",
    ),
    "risk without a part to calibrate on": (
        {
            "strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.1, error_probability=0.1)),
            "target": None,
            "evaluation": Evaluation(split=SplitFractions(fit=0.5, select=0.2, report=0.3)),
        },
        "spec.evaluation.split.calibrate",
    ),
    "risk of a regression": (
        {
            "strategy": ConditionalStrategy(risk=RiskCondition(max_loss=0.1, error_probability=0.1)),
            "target": None,
            "task": Task.REGRESSION,
        },
        "spec.conditional.risk",
    ),
    "conditional margin": (
        {"strategy": ConditionalStrategy(condition="abs_weight < 1", margin=NAN)},
        "spec.conditional.margin",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused_under_its_field(name: str) -> None:
    fields, expected = BAD[name]
    assert fields_of(good_spec(**fields)) == [expected]


def test_all_that_is_wrong_is_said_at_once() -> None:
    spec = good_spec(
        target=Target(kind=TargetKind.SPARSITY, value=2.0),
        device="tpu",
        fine_tune=FineTune(epochs=99_999, learning_rate=-1.0),
        seed=2**64 - 1,
        timeout_seconds=NAN,
    )
    with pytest.raises(InvalidRequestError) as caught:
        check_spec(spec)
    expected = ["spec.sparsity", "spec.device", "spec.fine_tune.epochs", "spec.fine_tune.learning_rate", "spec.seed"]
    assert [violation.field for violation in caught.value.violations] == [*expected, "spec.timeout"]
    assert all(field in caught.value.message for field in expected)


def test_a_missing_field_has_its_own_reason() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_spec(good_spec(target=None))
    assert caught.value.reason is Reason.MISSING_FIELD
    assert "sparsity" in caught.value.message


any_float = st.floats() | st.sampled_from([NAN, INFINITY, -INFINITY, -0.0, 5e-324])
risky_specs = st.builds(
    good_spec,
    strategy=st.builds(StaticStrategy, criterion=st.text(st.characters(codec="utf-8"))),
    target=st.builds(Target, kind=st.sampled_from(TargetKind), value=any_float | st.floats(0, 1)),
    arguments=st.lists(
        any_float | st.integers() | st.text(st.characters(codec="utf-8")) | st.booleans(), max_size=2
    ).map(lambda values: tuple(ScalarArgument(position=i, value=value) for i, value in enumerate(values))),
    preprocessing=st.builds(Preprocessing, scale=st.none() | any_float, mean=st.tuples(any_float)),
    fine_tune=st.builds(FineTune, weight_decay=any_float),
    seed=st.integers(),
    timeout_seconds=st.none() | any_float,
)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(risky_specs)
def test_whatever_passes_survives_storage(spec: PruningSpec) -> None:
    """What cannot be stored as JSON and read back the same must not get past the checks."""
    assume(not fields_of(spec))
    assert from_json(to_json(spec), PruningSpec) == spec


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("task", [None, Task.CLASSIFICATION, Task.MULTILABEL, Task.REGRESSION, Task.AGREEMENT])
@pytest.mark.parametrize("loss", [None, *Loss])
def test_what_is_implemented(scope: Scope, task: Task | None, loss: Loss | None) -> None:
    for kind, value in ((TargetKind.SPARSITY, 0.8), (TargetKind.THRESHOLD, 0.01), (TargetKind.PARAMETER_RATIO, 0.2)):
        strategy = StaticStrategy(scope=scope, include_biases=True, include_norms=True)
        check_implemented(good_spec(strategy=strategy, task=task, loss=loss, target=Target(kind=kind, value=value)))


@pytest.mark.parametrize(
    "fields", [{"target": None}, target(TargetKind.SPARSITY, 0.5), target(TargetKind.SPARSITY, 0.5 + 1e-9)], ids=str
)
def test_a_pattern_is_a_target_by_itself(fields: dict[str, Any]) -> None:
    spec = good_spec(**nm(2, 4) | fields)
    check_spec(spec)
    check_implemented(spec)


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.HEAD])
@pytest.mark.parametrize(
    "kind", [TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO, TargetKind.LATENCY_RATIO]
)
def test_what_is_implemented_of_structures(granularity: Granularity, kind: TargetKind) -> None:
    check_implemented(good_spec(**structural(granularity, kind, 0.5)))


@pytest.mark.parametrize("kind", [TargetKind.MACS_RATIO, TargetKind.LATENCY_RATIO])
@pytest.mark.parametrize("fields", [{}, nm(2, 4)])
def test_zeros_give_no_speed(kind: TargetKind, fields: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"neither operations nor time; ask for granularity channel or head"
    ) as caught:
        check_spec(good_spec(**{**fields, **target(kind, 0.5)}))
    assert {one.field for one in caught.value.violations} >= {f"spec.{kind.value}"}


@pytest.mark.parametrize("kind", [StaticStrategy, DynamicStrategy])
def test_sensitivity_is_for_channels_and_heads(kind: Any) -> None:
    for granularity in (Granularity.CHANNEL, Granularity.HEAD):
        check_spec(good_spec(strategy=kind(granularity=granularity, scope=Scope.SENSITIVITY)))
    strategy = kind(granularity=Granularity.WEIGHT, scope=Scope.SENSITIVITY)
    field = f"spec.{'static' if kind is StaticStrategy else 'dynamic'}.scope"
    assert field in fields_of(good_spec(strategy=strategy))


@pytest.mark.parametrize(
    ("strategy", "kind", "feature"),
    [
        (DynamicStrategy(), TargetKind.LATENCY_RATIO, "latency_ratio target"),
        (DynamicStrategy(granularity=Granularity.WEIGHT), TargetKind.PARAMETER_RATIO, "parameter_ratio target with weight"),
        (ConditionalStrategy(granularity=Granularity.CHANNEL, condition="l1 < 1"), TargetKind.LATENCY_RATIO, "latency_ratio target"),
        (DynamicStrategy(), TargetKind.MAX_ACCURACY_DROP, "max_accuracy_drop target"),
        (DynamicStrategy(granularity=Granularity.WEIGHT), TargetKind.MAX_ACCURACY_DROP, "max_accuracy_drop target"),
        (ConditionalStrategy(condition="abs_weight < 1"), TargetKind.MAX_ACCURACY_DROP, "max_accuracy_drop target"),
    ],
)  # fmt: skip
def test_what_only_static_pruning_does(strategy: Any, kind: TargetKind, feature: str) -> None:
    with pytest.raises(NotImplementedFeatureError, match=feature):
        check_implemented(good_spec(strategy=strategy, target=Target(kind=kind, value=0.5)))


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        (structural(Granularity.HEAD, TargetKind.THRESHOLD, 0.5), "with head give latency_ratio or macs_ratio or .*sparsity, or for threshold ask for granularity weight"),
        ({"strategy": DynamicStrategy(), "target": Target(kind=TargetKind.LATENCY_RATIO, value=0.5)}, "with channel give macs_ratio or parameter_ratio or sparsity, or for latency_ratio use the static strategy with granularity channel or head"),
        ({"strategy": DynamicStrategy(granularity=Granularity.WEIGHT), "target": Target(kind=TargetKind.THRESHOLD, value=0.5)}, "with weight give sparsity, or for threshold use the static strategy with granularity weight"),
        ({"strategy": DynamicStrategy(), "target": Target(kind=TargetKind.MAX_ACCURACY_DROP, value=0.5)}, "for max_accuracy_drop use the static strategy with granularity weight or channel or head"),
        ({"strategy": ConditionalStrategy(granularity=Granularity.CHANNEL, condition="l1 < 1"), "target": Target(kind=TargetKind.MAX_ACCURACY_DROP, value=0.5)}, "for max_accuracy_drop use the static strategy"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_comes_with_what_is(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(NotImplementedFeatureError, match=advice):
        check_implemented(good_spec(**fields))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (structural(Granularity.CHANNEL, TargetKind.THRESHOLD, 0.5), "threshold target with channel granularity"),
        (structural(Granularity.HEAD, TargetKind.THRESHOLD, 0.5), "threshold target with head granularity"),
    ],
)
def test_what_is_not_implemented_is_named(fields: dict[str, Any], name: str) -> None:
    spec = good_spec(**fields)
    check_spec(spec)
    with pytest.raises(NotImplementedFeatureError, match=name):
        check_implemented(spec)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"target": None}, "spec.target"),
        ({"target": None, "strategy": DynamicStrategy(schedule="rigl")}, "spec.target"),
        ({"recovery": Recovery(disabled=True)}, "spec.recovery.disabled"),
        ({"fine_tune": FineTune(epochs=0)}, "spec.fine_tune.epochs"),
        ({"strategy": DynamicStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=2, m=4))}, "spec.sparsity"),
    ],
)
def test_dynamic_pruning_trains_and_is_told_how_far(fields: dict[str, Any], named: str) -> None:
    spec = good_spec(**({"strategy": DynamicStrategy(), **target(TargetKind.SPARSITY, 0.3)} | fields))
    assert [problem.field for problem in find_problems(spec)] == [named]


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD])
def test_a_missing_target_names_only_targets_that_would_be_taken(granularity: Granularity) -> None:
    strategy = DynamicStrategy(granularity=granularity)
    (problem,) = find_problems(good_spec(strategy=strategy, target=None))
    named = [kind for kind in TargetKind if kind.value in problem.description]
    assert named
    for kind in named:
        spec = good_spec(strategy=strategy, **target(kind, 0.5))
        check_spec(spec)
        check_implemented(spec)


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": DynamicStrategy()},
        {"strategy": DynamicStrategy(schedule=JUDGED_SCHEDULE), "target": None},
        {"strategy": DynamicStrategy(schedule=JUDGED_SCHEDULE), "fine_tune": FineTune(epochs=0)},
        {"strategy": DynamicStrategy(granularity=Granularity.NM, nm_pattern=NmPattern(n=2, m=4)), "target": None},
    ],
)
def test_what_dynamic_pruning_can_do(fields: dict[str, Any]) -> None:
    spec = good_spec(**(target(TargetKind.SPARSITY, 0.3) | fields))
    check_spec(spec)
    check_implemented(spec)


@pytest.mark.parametrize(
    ("labels", "bad"),
    [
        ({}, 0),
        ({"team": "vision", "empty": ""}, 0),
        ({f"key-{i}": "x" for i in range(64)}, 0),
        ({f"key-{i}": "x" for i in range(65)}, 1),
        ({"": "x"}, 1),
        ({"k" * 257: "x"}, 1),
        ({"k": "v" * 257}, 1),
        ({"k\n": "v", "ok": "v", "j": "\x00"}, 2),
    ],
)
def test_labels(labels: dict[str, str], bad: int) -> None:
    assert len(list(find_label_problems(labels))) == bad


def test_no_problem_is_no_error() -> None:
    refuse([])


def test_unknown_fields_of_a_stored_request_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        from_json(to_json(good_spec())[:-1] + b',"surprise":1}', PruningSpec)


@pytest.mark.parametrize("task", Task)
def test_every_task_is_implemented(task: Task) -> None:
    check_implemented(good_spec(task=task))
