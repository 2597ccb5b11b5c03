"""What a condition decides over, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pruning_server.pruning.evidence import Evidence, SampleScores
from pruning_server.pruning.features.base import Layer
from pruning_server.spec.condition import Condition
from pruning_server.spec.request import ConditionalStrategy, Target


@dataclass(frozen=True)
class HarmTest:
    """How `p_harm` is computed.

    Attributes:
        p_value: of the hypothesis that the second model's metric is at least the margin below the first's.
        margin: in the metric's units.
    """

    p_value: Callable[[SampleScores, SampleScores], float]
    margin: float


@dataclass(frozen=True)
class Problem:
    """A condition and what it may ask.

    Attributes:
        condition: the request's.
        strategy: granularity, floors, correction.
        target: how far to go within what qualifies; None: everything goes.
        layers: by name of the kernel, and by each of its other names.
        evidence: runs of the unpruned model.
        harm: the test of `p_harm`.
        exclude_layers: shell wildcards of the request.
        progress: hears the share of long work that is done, in [0, 1].
    """

    condition: Condition
    strategy: ConditionalStrategy
    target: Target | None
    layers: Mapping[str, Layer]
    evidence: Evidence
    harm: HarmTest
    exclude_layers: tuple[str, ...] = ()
    progress: Callable[[float], None] = lambda _: None
