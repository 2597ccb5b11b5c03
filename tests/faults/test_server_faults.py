"""A real server whose disk fails in the middle of its work: callers are told, and what was accepted is carried out."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from helpers.chaos.clients import Client, Shared
from helpers.chaos.history import History, violations
from helpers.chaos.world import Nursery
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import children_of, wait_until
from pruning_api.v1 import artifact_pb2, pruning_job_pb2

# The first two creations are announcements of files, the first claim finds an empty queue.
FAULTS = (
    "commit.before/create@3=enospc;commit.before/claim@2=eio;worker.spawned@1=eio;stage.write@1=enospc;"
    "commit.before/append_event@2=eio;commit.before/succeed@1=eio"
)


def test_a_disk_that_fails_again_and_again_costs_attempts_and_no_job(tmp_path: Path) -> None:
    inputs, targets = table_data(60)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    model = save_scripted(mlp(), tmp_path / "model.pt").read_bytes()
    shared = Shared(History())
    with Nursery(tmp_path / "data") as nursery:
        address = nursery.start(FAULTS)
        assert address is not None
        client = Client(shared, address, 60.0)
        shared.model = client.upload(model, artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT)
        shared.data = client.upload((tmp_path / "data.npz").read_bytes(), artifact_pb2.ARTIFACT_KIND_DATASET)
        with pytest.raises(grpc.RpcError) as refused:
            client.submit("request", 0)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk is full" in str(refused.value.details())
        job_id = client.submit("request", 0)
        ended = (pruning_job_pb2.JOB_STATE_SUCCEEDED, pruning_job_pb2.JOB_STATE_FAILED)
        wait_until(lambda: client.get(job_id).state in ended, 60.0, "the job's end")
        job = client.get(job_id)
        assert job.state == pruning_job_pb2.JOB_STATE_SUCCEEDED, job.failure
        assert job.attempt == 3
        client.watch(job_id, 0, to_the_end=True)
        client.fetch(job.result.model_artifact_id)
        client.list_jobs()
        client.close()
        assert children_of(nursery.pid) == []
    assert violations(shared.history.facts) == []
