"""Renders a report as one self-contained page; needs jinja2 (the extra `[report]`)."""

from __future__ import annotations

from typing import Any

import jinja2

from pruning_client.html.view import build_view


def render_page(report: dict[str, Any]) -> str:
    """Returns the page: no script, no network, everything that comes from the report escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pruning_client", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(view=build_view(report))
