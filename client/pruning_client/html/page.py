"""Renders a report as one self-contained page; needs jinja2 (the extra `[report]`)."""

from __future__ import annotations

import functools
from typing import Any

import jinja2

from pruning_client.html.view import build_view


def render_page(report: dict[str, Any]) -> str:
    """Returns the page: no script, no network, everything that comes from the report escaped."""
    return _template().render(view=build_view(report))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pruning_client", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
