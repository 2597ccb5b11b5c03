"""Pure: what to cut. Criteria score, strategies plan, masks hold.

May import: `graph`, `spec`, `errors`.
"""

from __future__ import annotations

from pruning_server.pruning.values import StrategyInfo


def catalogue() -> tuple[StrategyInfo, ...]:
    """Every strategy of the API, with what this version has of it."""
    raise NotImplementedError
