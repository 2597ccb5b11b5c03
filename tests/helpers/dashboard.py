"""The Grafana dashboard and every PromQL expression that the repository shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
DASHBOARD = REPO / "deploy" / "grafana" / "dashboards" / "pruning.json"


def load_dashboard() -> dict[str, Any]:
    """The dashboard's JSON."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """Every panel that shows data."""
    return [panel for panel in load_dashboard()["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """(panel's title, PromQL) with the variables as Grafana would fill them in on a server that has just started."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "30s").replace("$window", "5m")
            yield panel["title"], expression.replace("$instance", ".*")


def documented_queries() -> Iterator[tuple[str, str]]:
    """(file name, PromQL), one for each line of the `promql` blocks of README.md and docs/metrics.md."""
    for path in (REPO / "README.md", REPO / "docs" / "metrics.md"):
        for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL):
            yield from ((path.name, line) for line in block.splitlines() if line.strip())


def metric_names(expression: str) -> set[str]:
    """The product's metrics that a PromQL expression names."""
    names = re.findall(r"\b((?:pruning|grpc_server|process)_\w+)\b", re.sub(r'"[^"]*"', '""', expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if not name.endswith("_total") else name for name in names}
