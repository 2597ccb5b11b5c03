from __future__ import annotations

import re
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from helpers.sample_metrics import finished_job, live_sources, record_everything
from pruning_server.adapters.metrics import (
    LiveSources,
    MeasuredDatabase,
    PrometheusMetrics,
    StorageUsage,
    endpoint,
    labels,
)
from pruning_server.adapters.metrics.endpoint import join_address, split_address
from pruning_server.errors import CapacityError, InvalidRequestError, NotFoundError, Reason
from pruning_server.jobs.events import CountersAdded, RunSucceeded
from pruning_server.jobs.model import Failure, JobState
from pruning_server.jobs.ports import Metrics
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Verdict

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
NOW = 1_000_000.0


@pytest.fixture
def metrics() -> Iterator[PrometheusMetrics]:
    made = PrometheusMetrics(now=lambda: NOW)
    yield made
    made.close()


def full(metrics: PrometheusMetrics) -> PrometheusMetrics:
    metrics.watch(live_sources(lambda: NOW))
    record_everything(metrics)
    return metrics


def families(metrics: PrometheusMetrics) -> dict[str, Metric]:
    """Families by the name that a query uses."""
    parsed = text_string_to_metric_families(metrics.render())
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in parsed}


def value(metrics: PrometheusMetrics, sample: str, **wanted: str) -> float:
    found = metrics.registry.get_sample_value(sample, wanted)
    assert found is not None, f"no sample {sample}{wanted}"
    return found


def test_fills_the_port_that_the_jobs_room_reports_through(metrics: PrometheusMetrics) -> None:
    port: Metrics = metrics
    missing = [name for name in vars(Metrics) if not name.startswith("_") and not callable(getattr(port, name, None))]
    assert missing == []


def test_throughput_counters_add_up(metrics: PrometheusMetrics) -> None:
    for _ in range(3):
        message = CountersAdded(
            parameters_processed=100, parameters_removed=80, samples_trained=60, samples_evaluated=20
        )
        metrics.worker_message(message, "static", "cuda:1")
    assert value(metrics, "pruning_parameters_processed_total", strategy="static") == 300
    assert value(metrics, "pruning_parameters_removed_total", strategy="static") == 240
    assert value(metrics, "pruning_samples_total", phase="train", device_type="cuda") == 180
    assert value(metrics, "pruning_samples_total", phase="eval", device_type="cuda") == 60


def test_a_worker_cannot_break_or_inflate_the_counters(metrics: PrometheusMetrics) -> None:
    """A worker runs a stranger's model; what it reports is data, not truth."""
    bad = CountersAdded(
        parameters_processed=-5, parameters_removed=10**400, samples_trained=2**60, samples_evaluated=-(10**30)
    )
    metrics.worker_message(bad, "static", "cpu")
    for sparsity, drop in ((float("nan"), float("nan")), (-1.0, float("inf")), (7.0, float("-inf"))):
        result = RunSucceeded(verdict=Verdict.PASS, sparsity=sparsity, accuracy_drop=drop, device_type="x")
        metrics.worker_message(result, "static", "cpu")
    metrics.phase_finished(Phase.PRUNE, float("nan"))
    metrics.phase_finished(Phase.PRUNE, -1.0)
    assert value(metrics, "pruning_parameters_processed_total", strategy="static") == 0
    assert value(metrics, "pruning_parameters_removed_total", strategy="static") == 0
    assert value(metrics, "pruning_samples_total", phase="train", device_type="cpu") == 0
    assert value(metrics, "pruning_achieved_sparsity_ratio_count", strategy="static") == 0
    assert value(metrics, "pruning_metric_drop_ratio_count", strategy="static") == 0
    assert value(metrics, "pruning_job_phase_duration_seconds_count", phase="PRUNE") == 0


def test_a_gain_of_accuracy_counts_as_no_drop(metrics: PrometheusMetrics) -> None:
    result = RunSucceeded(verdict=Verdict.PASS, sparsity=0.5, accuracy_drop=-0.02, device_type="cpu")
    metrics.worker_message(result, "static", "cpu")
    assert value(metrics, "pruning_metric_drop_ratio_bucket", strategy="static", le="0.0") == 1
    assert value(metrics, "pruning_metric_drop_ratio_sum", strategy="static") == 0


def test_outcomes_and_durations(metrics: PrometheusMetrics) -> None:
    lost = Failure(reason=Reason.WORKER_LOST, message="gone")
    metrics.job_completed(finished_job(seconds=100.0), "cpu")
    metrics.job_completed(finished_job(JobState.FAILED, lost), "cpu")
    common = {"strategy": "static", "device_type": "cpu"}
    completed = "pruning_jobs_completed_total"
    assert value(metrics, completed, **common, outcome="succeeded", reason="none") == 1
    assert value(metrics, completed, **common, outcome="failed", reason="lost") == 1
    duration = {"strategy": "static", "outcome": "succeeded"}
    assert value(metrics, "pruning_job_duration_seconds_sum", **duration) == pytest.approx(100.0, abs=1e-9)
    assert value(metrics, "pruning_job_duration_seconds_bucket", **duration, le="60.0") == 0
    assert value(metrics, "pruning_job_duration_seconds_bucket", **duration, le="180.0") == 1


def test_failed_proofs_are_counted_from_0(metrics: PrometheusMetrics) -> None:
    assert value(metrics, "pruning_proof_failures_total", strategy="static") == 0
    for reason in (Reason.VERIFICATION_FAILED, Reason.RESULT_REFUSED, Reason.WORKER_LOST):
        metrics.job_completed(finished_job(JobState.FAILED, Failure(reason=reason, message="")), "cpu")
    metrics.job_completed(finished_job(), "cpu")
    assert value(metrics, "pruning_proof_failures_total", strategy="static") == 1


def test_every_failure_reason_has_a_group() -> None:
    """A reason that is new must be put somewhere on purpose: only those that no run can end with are `other`."""
    grouped = {labels.failure_reason(Failure(reason=reason, message="")) for reason in Reason}
    assert grouped == set(labels.FAILURE_REASONS.values) - {labels.NO_REASON} | {labels.OTHER}
    assert len(grouped | {labels.NO_REASON}) <= 12
    run_reasons = [r for r in Reason if r.startswith(("MODEL_", "DATASET_", "LOSS_", "WORKER_", "VERI", "RESULT_"))]
    run_reasons += [Reason.NOTHING_PRUNABLE, Reason.EVERYTHING_PRUNED, Reason.TARGET_UNREACHABLE]
    run_reasons.append(Reason.DEADLINE_EXCEEDED)
    run_reasons.remove(Reason.WORKER_NOT_INSTALLED)
    assert [r for r in run_reasons if labels.failure_reason(Failure(reason=r, message="")) == labels.OTHER] == []


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.text(max_size=20), min_size=1, max_size=30))
def test_unknown_label_values_are_bounded(values: list[str]) -> None:
    """Whatever strings arrive, every closed label stays closed, and the page stays one that Prometheus can read."""
    metrics = full(PrometheusMetrics(now=lambda: NOW))
    bound = sum(len(family.samples) for family in families(metrics).values()) + 350
    for text in values:
        metrics.job_submitted(text)
        metrics.job_started(1.0, text)
        metrics.job_rejected(text)
        metrics.job_completed(finished_job(), text)
        metrics.worker_exited(text)
        metrics.worker_message(CountersAdded(samples_trained=1), text, text)
        with metrics.transfer(text) as moved:
            moved(1)
        metrics.handled(text, "s", "m", text, 0.1)
        metrics.transaction_failed(text)
    metrics.watch(LiveSources(storage_bytes=lambda: dict.fromkeys(values, 1), workers=lambda: dict.fromkeys(values, 1)))
    parsed = families(metrics)
    assert sum(len(family.samples) for family in parsed.values()) <= bound
    for family, label in (("pruning_jobs_submitted_total", "strategy"), ("pruning_worker_exits_total", "cause")):
        seen = {sample.labels[label] for sample in parsed[family].samples}
        assert seen <= {*labels.STRATEGIES.values, *labels.EXIT_CAUSES.values, labels.OTHER}


def test_invented_rpc_methods_are_bounded(metrics: PrometheusMetrics) -> None:
    for number in range(500):
        metrics.started("unary", f"service{number}", "method")
        metrics.handled("unary", f"service{number}", "method", "UNIMPLEMENTED", 0.0)
    started = families(metrics)["grpc_server_started_total"].samples
    assert len(started) == 65
    assert sum(sample.value for sample in started) == 500
    assert value(
        metrics, "grpc_server_started_total", grpc_type="unary", grpc_service="other", grpc_method="other"
    ) == (500 - 64)


def test_a_busy_server_stays_within_the_budget_of_series(metrics: PrometheusMetrics) -> None:
    """Every value of every closed label at once, and every RPC of the API with a few codes."""
    full(metrics)
    for strategy in labels.STRATEGIES.values:
        for device in labels.DEVICE_TYPES.values:
            metrics.worker_message(CountersAdded(), strategy, device)
            metrics.job_started(1.0, device)
            for reason in Reason:
                metrics.job_completed(finished_job(JobState.FAILED, Failure(reason=reason, message="")), device)
    for method in range(20):
        for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT", "UNAVAILABLE"):
            metrics.handled("unary", "pruning_api.v1.PruningJobService", f"Method{method}", code, 0.1)
    assert sum(len(family.samples) for family in families(metrics).values()) < 1500


def test_the_global_registry_is_untouched_and_instances_are_apart() -> None:
    before = {family.name for family in REGISTRY.collect()}
    first, second = PrometheusMetrics(), PrometheusMetrics()
    first.job_submitted("static")
    assert value(second, "pruning_jobs_submitted_total", strategy="static") == 0
    assert {family.name for family in REGISTRY.collect()} == before


def test_known_counters_exist_before_their_first_event(metrics: PrometheusMetrics) -> None:
    """Else the first failure has no rate, and the alert on it stays silent."""
    for cause in labels.EXIT_CAUSES.values:
        assert value(metrics, "pruning_worker_exits_total", cause=cause) == 0
    for reason in set(labels.FAILURE_REASONS.values) - {labels.NO_REASON}:
        wanted = {"strategy": "static", "device_type": "cpu", "outcome": "failed", "reason": reason}
        assert value(metrics, "pruning_jobs_completed_total", **wanted) == 0


def test_transfers_are_counted_while_open_and_when_cut(metrics: PrometheusMetrics) -> None:
    in_progress = {"direction": "upload", "transport": "grpc"}

    def cut() -> None:
        with metrics.transfer("upload") as moved:
            moved(1000)
            assert value(metrics, "pruning_transfers_in_progress", **in_progress) == 1
            moved(24)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        cut()
    assert value(metrics, "pruning_transfers_in_progress", **in_progress) == 0
    assert value(metrics, "pruning_transfer_bytes_total", **in_progress) == 1024
    assert value(metrics, "pruning_transfer_duration_seconds_count", direction="upload") == 1


def test_counting_from_many_threads_loses_nothing(metrics: PrometheusMetrics) -> None:
    def work() -> None:
        for _ in range(500):
            metrics.worker_message(CountersAdded(parameters_processed=1), "static", "cpu")
            metrics.handled("unary", "s", "m", "OK", 0.001)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert value(metrics, "pruning_parameters_processed_total", strategy="static") == 4000
    handled = {"grpc_type": "unary", "grpc_service": "s", "grpc_method": "m", "grpc_code": "OK"}
    assert value(metrics, "grpc_server_handled_total", **handled) == 4000


# --- Live gauges ------------------------------------------------------------------------------------------------------


def test_live_gauges_follow_their_sources(metrics: PrometheusMetrics) -> None:
    counts = dict.fromkeys(JobState, 0)
    oldest: list[float | None] = [None]
    metrics.watch(LiveSources(jobs_by_state=lambda: counts, oldest_queued_time=lambda: oldest[0]))
    assert value(metrics, "pruning_jobs", state="queued") == 0
    assert value(metrics, "pruning_queue_oldest_age_seconds") == 0
    counts[JobState.QUEUED] = 7
    oldest[0] = NOW - 42
    assert value(metrics, "pruning_jobs", state="queued") == 7
    assert value(metrics, "pruning_queue_oldest_age_seconds") == pytest.approx(42, abs=1e-6)
    oldest[0] = NOW + 10  # the clock was set back
    assert value(metrics, "pruning_queue_oldest_age_seconds") == 0


@pytest.mark.parametrize(("abi", "state"), [(7, 1), (0, 0)])
def test_the_sandbox_and_its_version_are_shown(metrics: PrometheusMetrics, abi: int, state: int) -> None:
    metrics.watch(LiveSources(landlock_abi=lambda: abi))
    assert value(metrics, "pruning_sandboxed", landlock_abi=str(abi)) == state


def test_a_source_that_fails_takes_no_other_along(metrics: PrometheusMetrics, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> dict[JobState, int]:
        raise sqlite3.OperationalError("database is locked")

    metrics.watch(LiveSources(jobs_by_state=fail, queue_capacity_jobs=lambda: 100))
    assert value(metrics, "pruning_queue_capacity_jobs") == 100
    assert metrics.registry.get_sample_value("pruning_jobs", {"state": "queued"}) is None
    assert value(metrics, "pruning_collect_errors_total") >= 1
    assert "pruning_jobs" in caplog.text


def test_slots_of_devices(metrics: PrometheusMetrics) -> None:
    metrics.watch(LiveSources(device_usage=lambda: {"cpu": (1, 4), "cuda:0": (1, 1), "weird\n": (5, 5)}))
    assert value(metrics, "pruning_device_slots", device="cpu", state="free") == 3
    assert value(metrics, "pruning_device_slots", device="cuda:0", state="busy") == 1
    assert value(metrics, "pruning_device_slots", device="other", state="busy") == 5


def test_storage_usage_counts_what_is_on_disk_and_is_measured_seldom(tmp_path: Path) -> None:
    clock = [0.0]
    blobs = tmp_path / "blobs"
    usage = StorageUsage(
        {"artifacts": (blobs,), "database": (tmp_path / "jobs.db",)}, tmp_path, monotonic=lambda: clock[0]
    )
    assert usage.bytes_by_kind() == {"artifacts": 0, "database": 0}
    (blobs / "aa").mkdir(parents=True)
    (blobs / "aa" / "blob").write_bytes(b"x" * 1_000_000)
    (blobs / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert usage.bytes_by_kind()["artifacts"] == 0, "measured anew although the last measurement is fresh"
    clock[0] = 31.0
    assert 1_000_000 <= usage.bytes_by_kind()["artifacts"] < 1_200_000
    assert usage.free_bytes() > 0


def test_database_transactions_are_measured(metrics: PrometheusMetrics, tmp_path: Path) -> None:
    database = MeasuredDatabase(tmp_path / "jobs.db", metrics)
    writes = value(metrics, "pruning_db_transaction_seconds_count", op="write")
    with database.write() as connection:
        connection.execute("CREATE TABLE t (x)")
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == 0
    assert value(metrics, "pruning_db_transaction_seconds_count", op="write") == writes + 1
    assert value(metrics, "pruning_db_transaction_seconds_count", op="read") == 1
    with pytest.raises(NotFoundError), database.read():
        raise NotFoundError(Reason.JOB_NOT_FOUND, "there is no such job")
    assert value(metrics, "pruning_db_errors_total", op="read") == 0
    with pytest.raises(sqlite3.OperationalError), database.write() as connection:
        connection.execute("SELECT * FROM nothing")
    with pytest.raises(CapacityError), database.write():
        raise CapacityError(Reason.STORAGE_FULL, "full")
    assert value(metrics, "pruning_db_errors_total", op="write") == 2
    database.close()


# --- The endpoint -----------------------------------------------------------------------------------------------------


def test_the_endpoint_serves_what_is_recorded_and_closes(metrics: PrometheusMetrics) -> None:
    address = full(metrics).serve("127.0.0.1:0")
    host, port = split_address(address)
    assert host == "127.0.0.1"
    assert port > 0
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'pruning_jobs_submitted_total{strategy="static"} 1.0' in text
    assert "_created" not in text
    metrics.close()
    metrics.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), timeout=5)


def test_a_silent_client_does_not_keep_others_waiting(metrics: PrometheusMetrics) -> None:
    address = metrics.serve("127.0.0.1:0")
    with (
        socket.create_connection(split_address(address), timeout=5),
        urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer,
    ):
        assert answer.status == 200


def test_a_flood_of_connections_is_turned_away_and_passes(metrics: PrometheusMetrics) -> None:
    address = metrics.serve("127.0.0.1:0")
    flood = [socket.create_connection(split_address(address), timeout=5) for _ in range(16)]
    for extra in (socket.create_connection(split_address(address), timeout=5) for _ in range(3)):
        with extra:
            assert extra.recv(1) == b"", "a connection above the limit is closed at once"
    for each in flood:
        each.close()
    for _ in range(50):
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                assert answer.status == 200
                return
        except (ConnectionError, urllib.error.URLError):
            continue
    pytest.fail("the endpoint did not recover from the flood")


def test_a_machine_without_threads_to_spare_costs_the_endpoint_nothing(
    metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = metrics.serve("127.0.0.1:0")
    with monkeypatch.context() as patch:

        def no_thread(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(20):
            with socket.create_connection(split_address(address), timeout=5) as dropped:
                assert dropped.recv(1) == b""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert answer.status == 200


def test_clients_that_send_a_byte_now_and_then_are_hung_up_on(
    metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte starts the wait for the next one anew, so that only a limit on the whole connection ends it."""
    monkeypatch.setattr(endpoint, "_CONNECTION_SECONDS", 0.5)
    address = metrics.serve("127.0.0.1:0")
    with socket.create_connection(split_address(address), timeout=0.1) as slow:
        slow.sendall(b"GET /metrics HTTP/1.0\r\n")
        for _ in range(50):
            try:
                slow.sendall(b"X: y\r\n")
                assert slow.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            return
    pytest.fail("the connection stays open")


def test_a_taken_address_says_what_to_do(metrics: PrometheusMetrics) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InvalidRequestError, match=r"choose another address") as caught,
    ):
        metrics.serve(f"127.0.0.1:{taken.getsockname()[1]}")
    assert caught.value.violations[0].field == "metrics_address"


@pytest.mark.parametrize(
    "address", ["", "9464", ":9464", "host", "host:", "host:x", "::1:9464", "host:70000", "host:-1"]
)
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidRequestError):
        split_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:9464", "[::1]:0", "example:65535"])
def test_addresses_round_trip(address: str) -> None:
    assert join_address(*split_address(address)) == address


# --- The documentation ------------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Name to (type, labels), from the tables of docs/metrics.md."""
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) ?\| .+ \|$", DOCS.read_text(), re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", found))) for name, kind, found in rows}


def test_documentation_and_registry_agree_both_ways(metrics: PrometheusMetrics) -> None:
    exposed = {}
    for name, family in families(full(metrics)).items():
        assert family.samples, f"{name} has no sample"
        exposed[name] = (family.type, frozenset().union(*(sample.labels for sample in family.samples)) - {"le"})
    assert documented() == exposed


def test_documented_label_values_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (`\w+`(?: of [a-z ]+)?) \| (`.+) \|$", DOCS.read_text(), re.MULTILINE))
    sets = {
        "`strategy`": labels.STRATEGIES,
        "`device_type`": labels.DEVICE_TYPES,
        "`outcome`": labels.OUTCOMES,
        "`reason` of completed jobs": labels.FAILURE_REASONS,
        "`reason` of rejections": labels.REJECTIONS,
        "`state` of jobs": labels.LIVE_STATES,
        "`state` of workers": labels.WORKER_STATES,
        "`phase` of runs": labels.PHASES,
        "`phase` of samples": labels.SAMPLE_PHASES,
        "`cause`": labels.EXIT_CAUSES,
        "`direction`": labels.DIRECTIONS,
        "`transport`": labels.TRANSPORTS,
        "`kind` of storage": labels.STORAGE_KINDS,
        "`op`": labels.DATABASE_OPERATIONS,
        "`grpc_type`": labels.RPC_KINDS,
    }
    for label, closed in sets.items():
        assert re.findall(r"`([\w]+)`", rows[label]) == list(closed.values), label
