"""What is done with one archive: everything that a row of the table says is found out here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.domain import UnsupportedNodeError
from pruning_server.graph.observe import count_macs
from pruning_server.graph.structure import Structure
from zoo.rows import TARGET, Row, Verdict
from zoo.shares import share_out
from zoo.shrinking import find_structure, plan, prove_equal, remove

SHRUNK = "shrunk.pt"
_REASONS = 3


def examine(archive: Path, inputs: Sequence[Sequence[object]]) -> Row:
    """Shrinks an archive to `TARGET` of its multiply-accumulates, or as far as it goes, and compares the two.

    The shrunk one is left beside it.

    Raises:
        RuntimeError: whatever loading, the model, the coupling or the surgery raises.
    """
    batch = _batch(inputs[0])
    pass_seconds = _pass_seconds(archive, inputs[0])
    macs = count_macs(torch.jit.load(str(archive)), inputs[0], batch).total
    _forget_peak()
    held = _memory_mib("VmRSS")
    clock = time.perf_counter()
    try:
        structure = find_structure(archive, inputs, batch)
    except UnsupportedNodeError as error:
        return Row(Verdict.REFUSED, remark=str(error), macs=macs, pass_seconds=pass_seconds)
    row = Row(
        verdict=Verdict.NOTHING,
        macs=macs,
        causes=tuple((one.op, one.source, one.reason, len(one.layers)) for one in structure.frozen),
        groups=len(structure.groups),
        failed_rules=structure.failed_rules,
        seconds=time.perf_counter() - clock,
        pass_seconds=pass_seconds,
    )
    row = replace(_shrunk(row, archive, inputs, structure, held), **_shares(archive, inputs, macs, structure))
    if row.macs_after is None:
        return row
    halved = row.macs is not None and row.macs_after <= TARGET * row.macs
    return row if row.verdict is Verdict.WRONG or not halved else replace(row, verdict=Verdict.HALVED)


def _shrunk(row: Row, archive: Path, inputs: Sequence[Sequence[object]], structure: Structure, held_mib: float) -> Row:
    clock = time.perf_counter()
    try:
        planned = plan(archive, structure, TARGET)
    except JobFailureError as error:
        if error.reason not in {Reason.NOTHING_PRUNABLE, Reason.TARGET_UNREACHABLE}:
            raise
        return replace(row, remark=str(error))
    smaller = archive.with_name(SHRUNK)
    cut = remove(archive, structure, planned, smaller)
    seconds = row.seconds + time.perf_counter() - clock
    peak = _memory_mib("VmHWM") - held_mib
    row = replace(row, seconds=seconds, peak_mib=max(peak, 0.0))
    clock = time.perf_counter()
    try:
        proof = prove_equal(archive, smaller, cut, inputs)
    except JobFailureError as error:
        return replace(row, verdict=Verdict.WRONG, remark=str(error))
    return replace(
        row,
        verdict=Verdict.SHORT,
        macs_after=count_macs(torch.jit.load(str(smaller)), inputs[0], _batch(inputs[0])).total,
        max_error=proof.max_relative_error,
        random_error=proof.max_relative_error_randomized,
        notes=proof.notes,
        proof_seconds=time.perf_counter() - clock,
    )


def _shares(
    archive: Path, inputs: Sequence[Sequence[object]], macs: int | None, structure: Structure
) -> dict[str, Any]:
    """The frozen share, and what freezes most; the reasons are from a second coupling, which counts for no figure."""
    tracer = Tracer(torch.jit.load(str(archive)).eval())
    tracer.trace("forward", inputs[0])
    visits = tuple(tracer.visits)
    for one in inputs[1:]:
        tracer.trace("forward", one)
    tracer.finish()
    shares = share_out(tracer, visits, None if macs is None else macs * _batch(inputs[0]))
    whole, least = structure.cost({}).macs, structure.cost(_everything(structure)).macs
    # What other methods and the code's numbers freeze, `forward` alone does not show.
    floor = least / whole if whole and least is not None else 0.0
    return {"frozen": max(shares.frozen, floor), "reasons": shares.reasons[:_REASONS]}


def _everything(structure: Structure) -> dict[int, range]:
    return {number: range(group.size) for number, group in enumerate(structure.groups)}


def _batch(inputs: Sequence[object]) -> int:
    return next((value.shape[0] for value in inputs if isinstance(value, torch.Tensor)), 1)


def _pass_seconds(archive: Path, inputs: Sequence[object]) -> float:
    """The second of two runs: the first one also plans."""
    module = torch.jit.load(str(archive))
    seconds = 0.0
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            module(*inputs)
            seconds = time.perf_counter() - start
    return seconds


def _forget_peak() -> None:
    """Starts a new peak of the resident memory, where the system lets a process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _memory_mib(name: str) -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)
