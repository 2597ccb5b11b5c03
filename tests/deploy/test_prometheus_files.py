from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
ALERTS = PROMETHEUS / "alerts.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)

HEALTHY = {
    'up{job="pruning-service"}': "1x600",
    "pruning_ready": "1x600",
    "pruning_draining": "0x600",
    'pruning_jobs{state="queued"}': "5x600",
    "pruning_queue_capacity_jobs": "100x600",
    "pruning_queue_oldest_age_seconds": "20x600",
    'pruning_device_slots{device="cpu",state="free"}': "1x600",
    'pruning_jobs_completed_total{outcome="succeeded",reason="none"}': "0+1x600",
    'pruning_jobs_completed_total{outcome="failed",reason="lost"}': "0x600",
    'pruning_jobs_completed_total{outcome="failed",reason="model"}': "0+1x600",
    'pruning_proof_failures_total{strategy="static"}': "0x600",
    'pruning_worker_exits_total{cause="oom"}': "0x600",
    "pruning_worker_heartbeat_age_seconds": "2x600",
    "pruning_storage_free_bytes": "100e9x600",
    'pruning_db_errors_total{op="write"}': "0x600",
    'grpc_server_handled_total{grpc_code="OK"}': "0+60x600",
    'grpc_server_handled_total{grpc_code="INTERNAL"}': "0x600",
    'pruning_checksum_failures_total{direction="upload"}': "0x600",
    'pruning_cancel_latency_seconds_bucket{le="1"}': "0+1x600",
    'pruning_cancel_latency_seconds_bucket{le="30"}': "0+1x600",
    'pruning_cancel_latency_seconds_bucket{le="+Inf"}': "0+1x600",
}

# What goes wrong, per alert: the series that differ from a healthy server's.
BREACHES = {
    "PruningServerDown": {'up{job="pruning-service"}': "1x60 0x540"},
    "PruningServerNotReady": {"pruning_ready": "0x600"},
    "PruningQueueNearlyFull": {'pruning_jobs{state="queued"}': "81x600"},
    "PruningQueueStuck": {"pruning_queue_oldest_age_seconds": "4000x600"},
    "PruningJobsFail": {'pruning_jobs_completed_total{outcome="failed",reason="lost"}': "0+1x600"},
    "PruningProofFails": {'pruning_proof_failures_total{strategy="static"}': "0+1x600"},
    "PruningWorkersDie": {'pruning_worker_exits_total{cause="oom"}': "0+1x600"},
    "PruningWorkerSilent": {"pruning_worker_heartbeat_age_seconds": "45x600"},
    "PruningStorageLow": {"pruning_storage_free_bytes": "9e9x600"},
    "PruningStorageFullSoon": {"pruning_storage_free_bytes": "100e9-1e8x600"},
    "PruningDatabaseErrors": {'pruning_db_errors_total{op="write"}': "0+1x600"},
    "PruningRpcErrors": {'grpc_server_handled_total{grpc_code="INTERNAL"}': "0+1x600"},
    "PruningChecksumFailures": {'pruning_checksum_failures_total{direction="upload"}': "0+1x600"},
    "PruningCancelSlow": {'pruning_cancel_latency_seconds_bucket{le="1"}': "0x600"},
}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def firing_test(breach: dict[str, str], firing: str | None) -> dict[str, Any]:
    """A promtool unit test: after eight hours of these series, exactly the alert `firing` (None: no alert) fires."""
    series = []
    for name, values in (HEALTHY | breach).items():
        metric, brace, rest = name.partition("{")
        labels = f'instance="server:9464"{"," + rest.rstrip("}") if brace else ""}'
        series.append({"series": f"{metric}{{{labels}}}", "values": values})
    expected = [] if firing is None else [{"labels": f'{{alertname="{firing}"}}', "value": 1}]
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "8h", "exp_samples": expected}],
    }


@needs_promtool
def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


@needs_promtool
def test_every_alert_fires_for_its_fault_and_for_no_other(tmp_path: Path) -> None:
    tests = [firing_test({}, None), *(firing_test(breach, alert) for alert, breach in BREACHES.items())]
    path = tmp_path / "alerts_test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    promtool("test", "rules", str(path))


def test_every_alert_has_a_fault_to_fire_for_and_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == set(BREACHES)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
