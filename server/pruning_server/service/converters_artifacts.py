"""Artifacts between the wire and their values."""

from __future__ import annotations

from pruning_api.v1 import artifact_pb2
from pruning_server.jobs.ports import Artifact
from pruning_server.service import converters_common as common


def artifact_to_wire(artifact: Artifact) -> artifact_pb2.Artifact:
    """Returns the artifact as its message; whose it is stays here."""
    return artifact_pb2.Artifact(
        artifact_id=artifact.artifact_id,
        kind=common.ARTIFACT_KINDS.to_wire(artifact.kind),
        state=artifact_pb2.ARTIFACT_STATE_ACTIVE if artifact.active else artifact_pb2.ARTIFACT_STATE_PENDING,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        committed_size_bytes=artifact.committed_size_bytes,
        display_name=artifact.display_name,
        create_time=common.timestamp(artifact.create_time),
        expire_time=common.timestamp(artifact.expire_time),
    )
