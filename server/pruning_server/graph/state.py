"""Runs of stateful models that leave no trace: what a run writes is put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from pruning_server.graph import ir
from pruning_server.graph.flow import Findings
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.slots import Path, Places, find_places, flatten
from pruning_server.graph.survey import survey

_BATCH_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class _Snapshot:
    """An attribute as it was: the value with its own tensors, and copies of what those held."""

    owner: ir.Module
    name: str
    value: object
    contents: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class StateGuard:
    """Puts buffers and attributes back as they were when the `with` block began.

    Parameters and kernels are left alone unless the model itself writes to them. May be entered again and again; the
    model is analysed once.

    Args:
        module: the module that the block runs.
        keep_statistics: True lets normalization statistics keep what the block did to them, as training needs.
        analysed: False saves the analysis where the module is a copy of one's own: then everything but parameters is
            put back, whether the model writes to it or not, and parameters are not.
    """

    def __init__(self, module: torch.jit.ScriptModule, *, keep_statistics: bool = False, analysed: bool = True) -> None:
        places = find_places(module)
        methods = ir.method_names(module) if analysed else ()
        graphs = {method: ir.inlined_copy(module, method) for method in methods}
        findings = analyse(places, graphs)
        skipped = _statistics(places, findings) if keep_statistics else frozenset()
        self._module = module
        self._attributes = tuple(_guarded(places, findings, skipped))
        self._untouched = _untouched_kernels(places, findings) | skipped
        self._snapshots: tuple[_Snapshot, ...] = ()

    def __enter__(self) -> Self:
        """Takes the snapshot."""
        self._snapshots = tuple(self._take(owner, path) for owner, path in self._attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the snapshot, also after an exception."""
        snapshots, self._snapshots = self._snapshots, ()
        with torch.no_grad():
            for snapshot in snapshots:
                _restore(snapshot)

    def _take(self, owner: ir.Module, path: Path) -> _Snapshot:
        value = ir.read_attribute(owner, path[-1])
        contents = tuple(
            (tensor, tensor.detach().clone())
            for inner, tensor in flatten(value, path)
            if isinstance(tensor, torch.Tensor) and inner not in self._untouched
        )
        return _Snapshot(owner, path[-1], value, contents)


def writes_state(module: torch.jit.ScriptModule) -> bool:
    """Whether `forward` can write to anything that the module holds, normalization statistics aside."""
    places = find_places(module)
    findings = analyse(places, {"forward": ir.inlined_copy(module, "forward")})
    return not {*findings.written, *findings.rescaled} <= _statistics(places, findings)


def _guarded(places: Places, findings: Findings, skipped: frozenset[Path]) -> Iterator[tuple[ir.Module, Path]]:
    written = {*findings.written, *findings.rescaled}
    for path, owner in places.modules.items():
        for name, value, parameter in ir.attributes(owner):
            here = (*path, name)
            if here in skipped or value is ir.OPAQUE:
                continue
            if not parameter or any(one[: len(here)] == here for one in written):
                yield owner, here


def _statistics(places: Places, findings: Findings) -> frozenset[Path]:
    counters = {path for path in places.slots if path[-1] == _BATCH_COUNTER}
    return frozenset(findings.statistics | counters)


def _untouched_kernels(places: Places, findings: Findings) -> frozenset[Path]:
    """Kernels can be large: they are copied only where the model writes to them."""
    names = {name for weight in survey(places, findings).weights for name in (weight.name, *weight.aliases)}
    return frozenset(path for path, slot in places.slots.items() if slot.name in names) - findings.rescaled


def _restore(snapshot: _Snapshot) -> None:
    for tensor, content in snapshot.contents:
        if tensor.grad_fn is not None:
            # A state written during training remembers how it was computed; the next step must not go back there.
            tensor.detach_()
        tensor.copy_(content)
    current = ir.read_attribute(snapshot.owner, snapshot.name)
    if not _same(current, snapshot.value):
        ir.set_attribute(snapshot.owner, snapshot.name, snapshot.value)


def _same(one: object, other: object) -> bool:
    """Whether two attribute values are the same tensors in the same structure, and equal otherwise."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and _same(list(one.values()), list(other.values()))
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(_same(left, right) for left, right in zip(one, other, strict=True))
    return bool(one == other) and type(one) is type(other)
