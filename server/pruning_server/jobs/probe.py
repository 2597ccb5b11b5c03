"""What the server learns about torch without importing it: the answer of `python -m pruning_server.worker probe`."""

from __future__ import annotations

from pruning_server.spec.base import Value
from pruning_server.spec.request import Granularity, TargetKind


class DeviceInfo(Value, frozen=True, kw_only=True):
    """A device that jobs can run on: `cpu` or `cuda:N`."""

    name: str
    description: str
    memory_bytes: int


class CriterionInfo(Value, frozen=True, kw_only=True):
    """A registered criterion and where it comes from (authors, year, arXiv)."""

    name: str
    summary: str
    source: str


class StrategyInfo(Value, frozen=True, kw_only=True):
    """A strategy of the API; `available` False: a request for it answers UNIMPLEMENTED."""

    name: str
    summary: str
    available: bool
    granularities: tuple[Granularity, ...] = ()
    targets: tuple[TargetKind, ...] = ()
    criteria: tuple[CriterionInfo, ...] = ()


class Probe(Value, frozen=True, kw_only=True):
    """Printed as one line of JSON on stdout by the probe."""

    torch_version: str
    cuda_version: str | None
    python_version: str
    devices: tuple[DeviceInfo, ...]
    strategies: tuple[StrategyInfo, ...]
