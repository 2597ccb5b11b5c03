"""Random numbers: fewer elements would draw others, so that nothing may be removed where they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named


def draw(call: Call) -> list[Any]:
    """Freezes every tensor whose shape or values say what is drawn."""
    call.freeze(list(call.arguments.values()), "a random number is drawn for every element")
    return [call.result((), index) for index in range(len(call.results))]


RULES: Mapping[str, Rule] = named(
    """
    rand_like randn_like randint_like bernoulli normal uniform exponential log_normal cauchy geometric random poisson
    binomial multinomial
    """,
    draw,
)
