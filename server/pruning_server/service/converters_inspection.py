"""Inspections between the wire and their values."""

from __future__ import annotations

from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_server.service.converters_common import Findings, uint32
from pruning_server.service.converters_spec import argument_from_wire, axes_from_wire, source_from_wire
from pruning_server.spec.inspection import Inspection, InspectionRequest, TensorSpec, find_inspection_problems
from pruning_server.spec.problems import missing, refuse

DEFAULT_DTYPE = "float32"


def inspection_from_wire(message: api.InspectModelRequest) -> InspectionRequest:
    """Returns the request as a value.

    Raises:
        InvalidRequestError: with a violation for everything that is wrong in it.
    """
    findings = Findings()
    if not message.HasField("model"):
        findings.add(missing("model", "is needed; upload the archive and give its artifact_id"))
    request = InspectionRequest(
        model=source_from_wire(message.model, "model", findings),
        samples=source_from_wire(message.samples, "samples", findings) if message.HasField("samples") else None,
        inputs=tuple(
            TensorSpec(shape=tuple(given.shape), dtype=given.dtype or DEFAULT_DTYPE) for given in message.inputs
        ),
        arguments=tuple(
            argument_from_wire(argument, f"arguments[{index}]", findings)
            for index, argument in enumerate(message.arguments)
        ),
        dynamic_axes=axes_from_wire(message.dynamic_axes),
    )
    refuse([*findings.problems, *find_inspection_problems(request)])
    return request


def inspection_to_wire(found: Inspection) -> api.InspectModelResponse:
    """Returns the inspection as its message."""
    return api.InspectModelResponse(
        inputs=[api.TensorSpec(shape=one.shape, dtype=one.dtype) for one in found.inputs],
        layers=[
            api.LayerInspection(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape,
                parameters=layer.parameters,
                macs=layer.macs,
                group_indices=layer.group_indices,
                min_parameter_ratio=layer.min_parameter_ratio,
            )
            for layer in found.layers
        ],
        groups=[api.ChannelGroup(channels=uint32(group.channels), layers=group.layers) for group in found.groups],
        frozen=[
            api.FrozenFinding(op=one.op, source=one.source, reason=one.reason, layers=one.layers)
            for one in found.frozen
        ],
        notes=found.notes,
    )
