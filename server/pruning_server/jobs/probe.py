"""What the server learns about torch without importing it: the answer of `python -m pruning_server.worker probe`."""

from __future__ import annotations

from pruning_server.spec.base import Value
from pruning_server.spec.condition import FeatureInfo
from pruning_server.spec.request import Granularity, TargetKind


class DeviceInfo(Value, frozen=True, kw_only=True):
    """A device that jobs can run on: `cpu` or `cuda:N`."""

    name: str
    description: str
    memory_bytes: int


class CriterionInfo(Value, frozen=True, kw_only=True):
    """A registered criterion, where it comes from (authors, year, arXiv), and what it can be asked for; (): everything.

    `needs`: what it asks of the data: none, gradients, activations or trials.
    """

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...] = ()
    needs: str = ""


class ScheduleInfo(Value, frozen=True, kw_only=True):
    """A registered schedule of dynamic pruning, where it comes from, and what it can be asked for."""

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...] = ()


class StrategyInfo(Value, frozen=True, kw_only=True):
    """A strategy of the API; `available` False: a request for it answers UNIMPLEMENTED."""

    name: str
    summary: str
    available: bool
    granularities: tuple[Granularity, ...] = ()
    targets: tuple[TargetKind, ...] = ()
    criteria: tuple[CriterionInfo, ...] = ()
    schedules: tuple[ScheduleInfo, ...] = ()
    features: tuple[FeatureInfo, ...] = ()


class Probe(Value, frozen=True, kw_only=True):
    """Printed as one line of JSON on stdout by the probe."""

    torch_version: str
    cuda_version: str | None
    python_version: str
    devices: tuple[DeviceInfo, ...]
    strategies: tuple[StrategyInfo, ...]
