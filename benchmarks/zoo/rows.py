"""What is found out about one archive: a line of the table."""

from __future__ import annotations

import enum
from dataclasses import dataclass

TARGET = 0.5
"""Multiply-accumulates that a shrunk archive is to have, relative to the original."""


class Verdict(enum.StrEnum):
    """What became of an archive."""

    HALVED = "halved"
    SHORT = "not halved"
    NOTHING = "nothing to remove"
    REFUSED = "refused"
    WRONG = "WRONG"
    CRASHED = "CRASHED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Row:
    """One archive's line of the table.

    Attributes:
        verdict: what became of it.
        remark: an error's message, or why it was skipped.
        macs: multiply-accumulates of a sample, before; None where an op cannot be counted.
        macs_after: the same of the shrunk archive; None where it was not shrunk.
        frozen: share of the multiply-accumulates that remains when every removable channel goes.
        reasons: what freezes most of them, with the share that each holds.
        causes: all that the coupling names: op, source line, reason, number of stored tensors.
        groups: number of groups of channels.
        failed_rules: forms of ops that a rule did not foresee; should be empty.
        max_error: between shrunk and masked archive, relative to the output's scale; None where nothing was shrunk.
        random_error: the same with random weights, in double precision where it runs in that.
        notes: what the proof says of its own limits.
        seconds: from the archive to the shrunk archive, on one thread.
        proof_seconds: the comparison.
        pass_seconds: one run of the archive on the first inputs.
        peak_mib: memory beyond what the process held with the archive loaded.
    """

    verdict: Verdict
    remark: str = ""
    macs: int | None = None
    macs_after: int | None = None
    frozen: float | None = None
    reasons: tuple[tuple[str, float], ...] = ()
    causes: tuple[tuple[str, str, str, int], ...] = ()
    groups: int = 0
    failed_rules: tuple[str, ...] = ()
    max_error: float | None = None
    random_error: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    proof_seconds: float = 0.0
    pass_seconds: float = 0.0
    peak_mib: float = 0.0
