"""Pure: what to cut. Criteria score, strategies plan, masks hold.

May import: `graph`, `spec`, `errors`.
"""

from __future__ import annotations

from pruning_server.pruning.strategies import catalogue

__all__ = ["catalogue"]
