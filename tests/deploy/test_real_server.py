"""What a real server exposes after real work: true numbers, and data in every panel."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.dashboard import documented_queries, panel_queries
from helpers.models import fitted, mlp, save_scripted, table_data
from helpers.prometheus_server import PrometheusServer, needs_prometheus
from helpers.running_server import RunningServer
from pruning_client.cli.main import main
from pruning_server.spec.phases import Phase


class Worked(NamedTuple):
    """A server that has pruned one model, turned one request away and cancelled nothing."""

    server: RunningServer
    folder: Path
    report: dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worked]:
    folder = tmp_path_factory.mktemp("metrics")
    inputs, targets = table_data()
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    save_scripted(fitted(mlp(), inputs, targets, epochs=3), folder / "model.pt")
    (folder / "model.bad").write_bytes(b"not a model")
    with RunningServer(folder / "data") as server:
        common = ["--validation", folder / "data.npz", "--strategy", "static", "--server", server.address, "--json"]
        outputs = ["-o", folder / "pruned.pt", "--report", folder / "report.json"]
        arguments = ["--sparsity", 0.5, "--epochs", 1, *outputs, *common]
        assert main(["submit", *map(str, [folder / "model.pt", *arguments])]) == 0
        assert main(["submit", *map(str, [folder / "model.bad", "--sparsity", 0.5, *common])]) == 2
        yield Worked(server, folder, json.loads((folder / "report.json").read_text()))


def samples(worked: Worked) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape, by name and labels."""
    with urllib.request.urlopen(f"http://{worked.server.metrics_address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(worked: Worked, name: str, **labels: str) -> float:
    return samples(worked)[name, frozenset(labels.items())]


def test_counters_tell_the_truth_about_jobs(worked: Worked) -> None:
    assert value(worked, "pruning_jobs_submitted_total", strategy="static") == 1
    completed = {name: v for name, v in samples(worked).items() if name[0] == "pruning_jobs_completed_total" and v}
    assert {dict(labels)["outcome"]: v for (_, labels), v in completed.items()} == {"succeeded": 1}
    assert value(worked, "pruning_job_attempts_total") == 1
    assert value(worked, "pruning_worker_exits_total", cause="ok") == 1
    assert value(worked, "pruning_job_queue_wait_seconds_count", device_type="cpu") == 1
    assert value(worked, "pruning_job_duration_seconds_count", strategy="static", outcome="succeeded") == 1
    for state in ("queued", "running", "cancelling"):
        assert value(worked, "pruning_jobs", state=state) == 0


def test_counters_tell_the_truth_about_the_work(worked: Worked) -> None:
    strategy = worked.report["strategy"]
    assert value(worked, "pruning_parameters_processed_total", strategy="static") == strategy["prunable_weights"] > 0
    assert value(worked, "pruning_parameters_removed_total", strategy="static") == strategy["pruned_weights"] > 0
    assert value(worked, "pruning_samples_total", phase="train", device_type="cpu") > 0
    assert value(worked, "pruning_samples_total", phase="eval", device_type="cpu") > 0
    assert value(worked, "pruning_achieved_sparsity_ratio_bucket", strategy="static", le="0.4") == 0
    assert value(worked, "pruning_achieved_sparsity_ratio_bucket", strategy="static", le="0.6") == 1
    assert value(worked, "pruning_metric_drop_ratio_count", strategy="static") == 1
    for phase in Phase:
        assert value(worked, "pruning_job_phase_duration_seconds_count", phase=phase) == 1, phase


def test_counters_tell_the_truth_about_transfers(worked: Worked) -> None:
    sent = sum((worked.folder / name).stat().st_size for name in ("model.pt", "data.npz", "model.bad"))
    fetched = sum((worked.folder / name).stat().st_size for name in ("pruned.pt", "report.json"))
    assert value(worked, "pruning_transfer_bytes_total", direction="upload", transport="grpc") == sent
    assert value(worked, "pruning_transfer_bytes_total", direction="download", transport="grpc") >= fetched
    for direction in ("upload", "download"):
        assert value(worked, "pruning_transfers_in_progress", direction=direction, transport="grpc") == 0
        assert value(worked, "pruning_checksum_failures_total", direction=direction) == 0


def test_rpcs_are_counted_by_their_codes(worked: Worked) -> None:
    rpc = {"grpc_type": "unary", "grpc_service": "pruning_api.v1.PruningJobService", "grpc_method": "CreatePruningJob"}
    # Both commands ask whether the request would be taken before they upload anything.
    assert value(worked, "grpc_server_handled_total", **rpc, grpc_code="OK") == 3
    assert value(worked, "grpc_server_handled_total", **rpc, grpc_code="INVALID_ARGUMENT") == 1
    assert value(worked, "grpc_server_handling_seconds_count", **rpc) == 4
    assert not [labels for (name, labels) in samples(worked) if ("grpc_code", "INTERNAL") in labels]


def test_live_values_are_there(worked: Worked) -> None:
    assert value(worked, "pruning_ready") == 1
    assert value(worked, "pruning_draining") == 0
    assert value(worked, "pruning_collect_errors_total") == 0
    assert value(worked, "pruning_queue_capacity_jobs") == 100
    assert value(worked, "pruning_storage_bytes", kind="artifacts") > 0
    assert value(worked, "pruning_device_slots", device="cpu", state="free") >= 1
    [build] = [dict(labels) for (name, labels) in samples(worked) if name == "pruning_build_info"]
    assert build["torch"].startswith("2.")


@needs_prometheus
def test_every_panel_has_data_of_a_real_server(worked: Worked, tmp_path: Path) -> None:
    with PrometheusServer(tmp_path, {"pruning-service": worked.server.metrics_address}) as prometheus:
        for where, query in [*panel_queries(), *documented_queries()]:
            assert prometheus.wait_for(query), f"{where}: {query}"
