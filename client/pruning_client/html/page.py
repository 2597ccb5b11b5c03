"""Renders a report as one self-contained page; needs jinja2 and matplotlib (the extra `[report]`)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from pruning_client.html.view import PageView, build_view

# More would push the pictures below the fold.
SHOWN_CONCERNS = 7


def render_page(report: dict[str, Any]) -> str:
    """Returns the page: no script, no network, everything that comes from the report escaped."""
    return render_view(build_view(report))


def render_view(view: PageView) -> str:
    """Returns the page of a view; the same holds for it."""
    return _template().render(view=view, style=_style(), shown_concerns=SHOWN_CONCERNS)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pruning_client", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = _drawing
    return environment.get_template("page.html.j2")


@functools.cache
def _style() -> markupsafe.Markup:
    # From this package, not from the report.
    return markupsafe.Markup(resources.files("pruning_client.html").joinpath("style.css").read_text("utf-8"))  # noqa: S704


def _drawing(svg: str, label: str) -> markupsafe.Markup:
    """Places an SVG of `figures`, in which all text is escaped, with its words for those who do not see it."""
    opening = markupsafe.Markup('<svg class="plot" role="img" aria-label="{}" ').format(label)
    return opening + markupsafe.Markup(svg.removeprefix("<svg "))  # noqa: S704
