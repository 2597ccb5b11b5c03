"""InspectModel over the wire: what it asks and answers, what it refuses, and that it ends with its call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.grpc_world import GrpcWorld
from helpers.job_world import World
from helpers.processes import wait_until
from pruning_api.v1 import artifact_pb2, spec_pb2
from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_server.errors import PreconditionError, Reason
from pruning_server.jobs.inspection import cancelled_error
from pruning_server.jobs.ports import CancelToken, Inspector
from pruning_server.spec.inspection import (
    FrozenInspection,
    GroupInspection,
    Inspection,
    InspectionRequest,
    LayerInspection,
    TensorSpec,
)
from pruning_server.spec.request import ArtifactRef, DynamicAxes, ScalarArgument

FOUND = Inspection(
    inputs=(TensorSpec(shape=(1, 3), dtype="float32"),),
    layers=(
        LayerInspection(
            name="fc", kind="linear", shape=(4, 3), parameters=16, macs=12, group_indices=(0,), min_parameter_ratio=0.25
        ),
    ),
    groups=(GroupInspection(channels=4, layers=("fc", "out")),),
    frozen=(FrozenInspection(op="aten::view", source="net.py:7", reason="unknown", layers=("out",)),),
    notes=("something to know",),
)


class ScriptedInspector:
    """Answers at once, raises, or waits for the end of the call."""

    def __init__(self) -> None:
        self.asked: list[InspectionRequest] = []
        self.error: Exception | None = None
        self.waits = False
        self.cancelled = threading.Event()

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        assert owner is not None
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        if self.waits:
            assert cancelled.wait(20.0)
            self.cancelled.set()
            raise cancelled_error()
        return FOUND


@pytest.fixture
def inspector() -> ScriptedInspector:
    return ScriptedInspector()


@pytest.fixture
def world(tmp_path: Path, inspector: ScriptedInspector) -> Iterator[GrpcWorld]:
    def make(_: World) -> Inspector:
        return inspector

    with GrpcWorld(tmp_path / "data", inspect=make) as found:
        yield found


def source(artifact_id: str) -> spec_pb2.ArtifactSource:
    return spec_pb2.ArtifactSource(artifact_id=artifact_id)


def ask(world: GrpcWorld, **fields: Any) -> api.InspectModelResponse:
    fields = {"model": source(world.upload(b"a model"))} | fields
    return world.jobs.InspectModel(api.InspectModelRequest(**fields), timeout=20)


def test_the_request_and_the_answer_are_carried_whole(world: GrpcWorld, inspector: ScriptedInspector) -> None:
    model = world.upload(b"a model")
    answer = ask(
        world,
        inputs=[api.TensorSpec(shape=[1, 3]), api.TensorSpec(shape=[2], dtype="int64")],
        arguments=[spec_pb2.ScalarArgument(position=2, float_value=0.5)],
        dynamic_axes=[spec_pb2.DynamicAxes(input=0, axes=[1])],
    )
    assert inspector.asked == [
        InspectionRequest(
            model=ArtifactRef(artifact_id=model, sha256=None),
            inputs=(TensorSpec(shape=(1, 3), dtype="float32"), TensorSpec(shape=(2,), dtype="int64")),
            arguments=(ScalarArgument(position=2, value=0.5),),
            dynamic_axes=(DynamicAxes(input=0, axes=(1,)),),
        )
    ]
    layer = answer.layers[0]
    assert (layer.name, layer.kind, list(layer.shape)) == ("fc", "linear", [4, 3])
    assert (layer.parameters, layer.macs, list(layer.group_indices), layer.min_parameter_ratio) == (16, 12, [0], 0.25)
    assert [(group.channels, list(group.layers)) for group in answer.groups] == [(4, ["fc", "out"])]
    frozen = answer.frozen[0]
    assert (frozen.op, frozen.source, frozen.reason) == ("aten::view", "net.py:7", "unknown")
    assert list(frozen.layers) == ["out"]
    assert [(list(one.shape), one.dtype) for one in answer.inputs] == [([1, 3], "float32")]


DATASET = artifact_pb2.ARTIFACT_KIND_DATASET


@pytest.mark.parametrize(
    ("fields", "reason", "violated"),
    [
        (lambda _: {"model": None}, "MISSING_FIELD", {"model"}),
        (lambda _: {"model": source("nothing")}, "ARTIFACT_NOT_FOUND", {"model"}),
        (lambda w: {"model": source(w.upload(b"data", DATASET))}, "ARTIFACT_WRONG_KIND", {"model"}),
        (lambda w: {"samples": source(w.upload(b"a model"))}, "ARTIFACT_WRONG_KIND", {"samples"}),
        (lambda _: {"model": spec_pb2.ArtifactSource(uri="s3://a/b")}, "URI_DENIED", {"model"}),
        (lambda w: {"model": spec_pb2.ArtifactSource(artifact_id=w.upload(b"a model"), sha256="0" * 64)}, "CONTENT_MISMATCH", {"model"}),
        (lambda _: {"inputs": [{"shape": [1, 0]}, {"shape": [1]}, {"shape": [2**40]}, {"shape": [1], "dtype": "complex64"}]}, "INVALID_FIELD", {"inputs[0]", "inputs[2]", "inputs[3]"}),
        (lambda w: {"inputs": [{"shape": [1]}], "samples": source(w.upload(b"d", DATASET))}, "INVALID_FIELD", {"inputs"}),
        (lambda _: {"arguments": [{"position": 1, "int_value": 1}, {"position": 1, "int_value": 2}]}, "INVALID_FIELD", {"arguments"}),
        (lambda _: {"arguments": [{"position": 1}]}, "MISSING_FIELD", {"arguments[0].value"}),
        (lambda _: {"inputs": [{"shape": [1]}] * 65}, "INVALID_FIELD", {"inputs"}),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_field(
    world: GrpcWorld,
    inspector: ScriptedInspector,
    refused: Any,
    fields: Callable[[GrpcWorld], dict[str, Any]],
    reason: str,
    violated: set[str],
) -> None:
    asked = fields(world)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason) as caught:
        ask(world, **asked)
    assert set(caught[0].violations) == violated
    assert inspector.asked == []


def test_a_death_is_a_failed_precondition(world: GrpcWorld, inspector: ScriptedInspector, refused: Any) -> None:
    inspector.error = PreconditionError(Reason.WORKER_SIGNAL, "it crashed", metadata={"signal": "SIGSEGV"})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "WORKER_SIGNAL") as caught:
        ask(world)
    assert caught[0].metadata["signal"] == "SIGSEGV"


def test_a_call_that_ends_stops_its_inspection(world: GrpcWorld, inspector: ScriptedInspector) -> None:
    inspector.waits = True
    request = api.InspectModelRequest(model=source(world.upload(b"a model")))
    call = world.jobs.InspectModel.future(request, timeout=20)
    wait_until(lambda: inspector.asked, what="the start of the inspection")
    assert call.cancel()
    assert inspector.cancelled.wait(10.0)


def test_a_server_that_stops_ends_its_inspections(tmp_path: Path, inspector: ScriptedInspector) -> None:
    inspector.waits = True
    with GrpcWorld(tmp_path / "data", inspect=lambda _: inspector) as world:
        call = world.jobs.InspectModel.future(
            api.InspectModelRequest(model=source(world.upload(b"a model"))), timeout=20
        )
        wait_until(lambda: inspector.asked, what="the start of the inspection")
    assert inspector.cancelled.is_set()
    assert isinstance(call.exception(), grpc.RpcError | grpc.FutureCancelledError)
