"""What the gate's child process prints on stdout, as one line of JSON.

    python -m pruning_server.archive check  --kind KIND SOURCE
    python -m pruning_server.archive repack --kind KIND SOURCE DESTINATION

Exit code 0 with an answer, accepted or refused; anything else is a death of the gate.
"""

from __future__ import annotations

from pruning_server.errors import Reason
from pruning_server.spec.artifacts import Summary
from pruning_server.spec.base import Value


class Refusal(Value, frozen=True, kw_only=True):
    """Why the file is refused, and what to change."""

    reason: Reason
    message: str
    metadata: dict[str, str]


class GateAnswer(Value, frozen=True, kw_only=True):
    """Exactly one of the two is set."""

    summary: Summary | None = None
    refusal: Refusal | None = None
