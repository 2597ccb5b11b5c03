"""Requests against summaries: every mismatch that can be seen without running is named with its field and its remedy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.jobs.checks import check_summaries, samples_needed
from pruning_server.spec.artifacts import DatasetSummary, Summary, TensorSummary
from pruning_server.spec.request import (
    ArtifactRef,
    Evaluation,
    Layout,
    Loss,
    Preprocessing,
    PruningSpec,
    ScalarArgument,
    SplitFractions,
    StaticStrategy,
    Task,
)

IMAGE_SHAPE = (100, 3, 8, 9)


def array(name: str, dtype: str, *shape: int) -> TensorSummary:
    return TensorSummary(name=name, dtype=dtype, shape=shape)


IMAGES = array("inputs", "uint8", *IMAGE_SHAPE)
LABELS = array("targets", "int64", 100)


def dataset(*inputs: TensorSummary, targets: TensorSummary | None = LABELS, **fields: Any) -> DatasetSummary:
    return DatasetSummary(
        **{
            "container": "npz",
            "samples": 100,
            "inputs": inputs or (IMAGES,),
            "targets": targets,
            "has_split": False,
            "has_groups": False,
            "size_bytes": 1,
            **fields,
        }
    )


def spec(**fields: Any) -> PruningSpec:
    reference = ArtifactRef(artifact_id="a")
    return PruningSpec(model=reference, validation=reference, strategy=StaticStrategy(), **fields)


def violations(
    request: PruningSpec, validation: DatasetSummary, train: DatasetSummary | None = None
) -> dict[str, tuple[Reason, str]]:
    """Field -> (reason of the whole error, description); empty if nothing is wrong."""
    summaries: dict[str, Summary] = {"spec.validation": validation}
    if train is not None:
        summaries["spec.train"] = train
    try:
        check_summaries(request, summaries)
    except InvalidRequestError as error:
        missing = [violation for violation in error.violations if violation.description not in error.message]
        if missing:
            pytest.fail(f"the message leaves out {missing}")
        return {violation.field: (error.reason, violation.description) for violation in error.violations}
    return {}


@pytest.mark.parametrize(
    ("request_", "data"),
    [
        (spec(), dataset()),
        (spec(), dataset(targets=None)),
        (spec(task=Task.AGREEMENT), dataset(targets=None)),
        (spec(task=Task.AGREEMENT, loss=Loss.MSE), dataset(targets=None)),
        (
            spec(task=Task.CLASSIFICATION, loss=Loss.CROSS_ENTROPY),
            dataset(targets=array("targets", "float32", 100, 10)),
        ),
        (spec(task=Task.CLASSIFICATION), dataset(targets=array("targets", "float32", 100))),
        (spec(loss=Loss.CROSS_ENTROPY, task=Task.CLASSIFICATION), dataset()),
        (spec(loss=Loss.CROSS_ENTROPY), dataset(targets=array("targets", "uint8", 100))),
        (spec(loss=Loss.MSE, task=Task.REGRESSION), dataset(targets=array("targets", "float32", 100, 2))),
        (spec(loss=Loss.MSE), dataset(targets=array("targets", "int32", 100))),
        (spec(loss=Loss.BCE_WITH_LOGITS, task=Task.MULTILABEL), dataset(targets=array("targets", "float32", 100, 5))),
        (spec(preprocessing=Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0))), dataset()),
        (spec(preprocessing=Preprocessing(mean=(1.0,), std=(1.0,))), dataset()),
        (
            spec(preprocessing=Preprocessing(mean=(1.0,) * 3, layout=Layout.NHWC)),
            dataset(array("inputs", "uint8", 100, 8, 9, 3)),
        ),
        (spec(preprocessing=Preprocessing(mean=(1.0, 2.0))), dataset(array("inputs", "float32", 100, 7))),
        (spec(arguments=(ScalarArgument(position=1, value=16000),)), dataset()),
        (
            spec(arguments=(ScalarArgument(position=0, value=1), ScalarArgument(position=2, value=True))),
            dataset(array("inputs_0", "float32", 100, 2), array("inputs_1", "int64", 100)),
        ),
        (spec(), dataset(samples=4)),
        (spec(), dataset(samples=2, has_split=True)),
    ],
)
def test_what_fits_is_let_through(request_: PruningSpec, data: DatasetSummary) -> None:
    assert violations(request_, data) == {}


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_too_few_samples_say_how_many_are_needed(samples: int) -> None:
    reason, text = violations(spec(), dataset(samples=samples))["spec.validation"]
    assert reason is Reason.DATASET_TOO_SMALL
    assert f"has {samples} samples" in text
    assert "at least 4" in text


@pytest.mark.parametrize(
    ("split", "needed"),
    [
        (SplitFractions(), 4),
        (SplitFractions(fit=0.5, select=0.2, report=0.2, calibrate=0.1), 5),
        (SplitFractions(fit=0.5, select=0.0, report=0.5), 3),
    ],
)
def test_every_split_that_is_used_needs_a_sample(split: SplitFractions, needed: int) -> None:
    assert samples_needed(split) == needed
    request = spec(evaluation=Evaluation(split=split))
    assert violations(request, dataset(samples=needed)) == {}
    assert "spec.validation" in violations(request, dataset(samples=needed - 1))


def test_nhwc_needs_images() -> None:
    request = spec(preprocessing=Preprocessing(layout=Layout.NHWC))
    _, text = violations(request, dataset(array("inputs", "float32", 100, 7)))["spec.preprocessing.layout"]
    assert "float32[N, 7]" in text


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("layout", [None, Layout.NCHW, Layout.NHWC])
def test_mean_and_std_have_a_value_per_channel(name: str, layout: Layout | None) -> None:
    request = spec(preprocessing=Preprocessing(**{name: (1.0, 2.0)}, layout=layout))
    found = violations(request, dataset())
    assert list(found) == [f"spec.preprocessing.{name}"]
    assert ("9 channels" if layout is Layout.NHWC else "3 channels") in found[f"spec.preprocessing.{name}"][1]


def test_images_that_look_stored_as_nhwc_get_the_hint() -> None:
    request = spec(preprocessing=Preprocessing(mean=(1.0, 2.0, 3.0)))
    _, text = violations(request, dataset(array("inputs", "uint8", 100, 8, 9, 3)))["spec.preprocessing.mean"]
    assert "NHWC" in text


@pytest.mark.parametrize("loss", list(Loss))
def test_every_loss_needs_targets(loss: Loss) -> None:
    reason, text = violations(spec(loss=loss), dataset(targets=None))["spec.loss"]
    assert reason is Reason.DATASET_TARGETS
    assert loss.value in text


def test_a_loss_module_and_a_task_need_targets() -> None:
    request = spec(loss_module=ArtifactRef(artifact_id="l"), task=Task.REGRESSION)
    assert set(violations(request, dataset(targets=None))) == {"spec.loss_module", "spec.task"}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(100,), (100, 1), (100, 5)])
def test_cross_entropy_needs_class_numbers(dtype: str, shape: tuple[int, ...]) -> None:
    targets = array("targets", dtype, *shape)
    reason, text = violations(spec(loss=Loss.CROSS_ENTROPY), dataset(targets=targets))["spec.loss"]
    assert reason is Reason.DATASET_TARGETS
    assert dtype in text
    assert "int64" in text


@pytest.mark.parametrize(
    ("positions", "wrong"),
    [
        ((0, 0), "spec.arguments[1].position"),
        ((5,), "spec.arguments[0].position"),
        ((-1,), "spec.arguments[0].position"),
    ],
)
def test_arguments_stand_side_by_side(positions: tuple[int, ...], wrong: str) -> None:
    arguments = tuple(ScalarArgument(position=position, value=1) for position in positions)
    assert list(violations(spec(arguments=arguments), dataset())) == [wrong]


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (dataset(IMAGES, IMAGES), Reason.DATASET_KEYS),
        (dataset(array("inputs", "float32", *IMAGE_SHAPE)), Reason.DATASET_DTYPE),
        (dataset(array("inputs", "uint8", 50, 3, 9, 9)), Reason.MODEL_INPUT_MISMATCH),
        (dataset(targets=None), Reason.DATASET_TARGETS),
        (dataset(targets=array("targets", "float32", 100)), Reason.DATASET_DTYPE),
        (dataset(targets=array("targets", "int64", 100, 2)), Reason.MODEL_INPUT_MISMATCH),
    ],
)
def test_the_training_set_is_like_the_validation_set(train: DatasetSummary, reason: Reason) -> None:
    found = violations(spec(), dataset(), train)
    assert found["spec.train"][0] is reason


def test_a_training_set_of_another_length_fits() -> None:
    train = dataset(array("inputs", "uint8", 7, 3, 8, 9), targets=array("targets", "int64", 7), samples=7)
    assert violations(spec(), dataset(), train) == {}
    unlabelled = msgspec.structs.replace(dataset(), targets=None)
    assert violations(spec(), unlabelled, train) == {}


def test_everything_that_is_wrong_is_named_at_once() -> None:
    request = spec(loss=Loss.MSE, preprocessing=Preprocessing(layout=Layout.NHWC))
    data = dataset(array("inputs", "float32", 100, 7), targets=None, samples=1)
    found = violations(request, data)
    assert set(found) == {"spec.validation", "spec.preprocessing.layout", "spec.loss"}
