from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from helpers.dashboard import documented_queries, load_dashboard, metric_names, panel_queries, panels
from helpers.prometheus_server import PrometheusServer, needs_prometheus
from helpers.sample_metrics import live_sources, record_everything
from pruning_server.adapters.metrics import PrometheusMetrics


def busy_metrics() -> PrometheusMetrics:
    metrics = PrometheusMetrics()
    metrics.watch(live_sources(time.time))
    record_everything(metrics)
    return metrics


@needs_prometheus
def test_every_query_finds_finite_values_in_a_real_prometheus(tmp_path: Path) -> None:
    metrics = busy_metrics()
    address = metrics.serve("127.0.0.1:0")
    try:
        with PrometheusServer(tmp_path, {"pruning-service": address}) as prometheus:
            prometheus.wait_for('pruning_jobs_submitted_total{strategy="static"} == 1')
            record_everything(metrics)
            prometheus.wait_for('rate(pruning_jobs_submitted_total{strategy="static"}[30s]) > 0')
            for where, query in [*panel_queries(), *documented_queries()]:
                values = [float(series["value"][1]) for series in prometheus.wait_for(query)]
                # A quantile over buckets that saw nothing is NaN, for methods or phases; not for all of them.
                assert any(math.isfinite(value) for value in values), f"{where}: {query} gives {values}"
    finally:
        metrics.close()


def test_every_query_names_metrics_that_exist() -> None:
    exposed = set()
    for family in text_string_to_metric_families(busy_metrics().render()):
        exposed.add(family.name + ("_total" if family.type == "counter" else ""))
    for where, query in [*panel_queries(), *documented_queries()]:
        assert metric_names(query), f"{where}: {query}"
        assert metric_names(query) <= exposed, f"{where}: {query}"


def test_every_metric_that_an_operator_watches_is_on_the_dashboard() -> None:
    shown = set().union(*(metric_names(query) for _, query in panel_queries()))
    exposed = set()
    for family in text_string_to_metric_families(busy_metrics().render()):
        exposed.add(family.name + ("_total" if family.type == "counter" else ""))
    # What is not there is the other half of something that is, or belongs in an alert or an ad-hoc query.
    assert exposed - shown == {
        "pruning_jobs_submitted_total",
        "pruning_device_memory_bytes",
        "pruning_draining",
        "grpc_server_started_total",
        "grpc_server_msg_received_total",
        "grpc_server_msg_sent_total",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
    }


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    """A fixed uid, no id of the Grafana that it came from, and no data source but the variable."""
    dashboard = load_dashboard()
    assert dashboard["uid"] == "pruning-service"
    assert dashboard.get("id") is None
    assert "__inputs" not in dashboard
    assert dashboard["schemaVersion"] >= 41
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        unit = (
            panel["options"]["yAxis"]["unit"]
            if panel["type"] == "heatmap"
            else panel["fieldConfig"]["defaults"]["unit"]
        )
        assert unit, panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"] or panel["type"] == "stat", panel["title"]


def test_panels_have_ids_and_places_of_their_own() -> None:
    every = load_dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for left, right in itertools.combinations(every, 2):
        assert not overlap(left["gridPos"], right["gridPos"]), f"{left['title']} and {right['title']}"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in every)


def overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    apart = (
        a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    )
    return not apart


def test_the_topics_of_an_operator_each_have_a_row() -> None:
    rows = [panel["title"] for panel in load_dashboard()["panels"] if panel["type"] == "row"]
    assert rows == [
        "Overview",
        "Throughput",
        "Queue",
        "Durations",
        "Outcomes",
        "Transfers",
        "Errors",
        "Storage and server",
    ]
