"""What this machine can run and what this version can do, for a server that does not import torch."""

from __future__ import annotations

import os
import platform

import torch

from pruning_server import pruning
from pruning_server.jobs.probe import CriterionInfo, DeviceInfo, Probe, ScheduleInfo, StrategyInfo


def probe() -> Probe:
    """Asks torch for its devices and the registries for strategies and criteria."""
    return Probe(
        torch_version=str(torch.__version__),
        cuda_version=torch.version.cuda,
        python_version=platform.python_version(),
        devices=(_cpu(), *_cuda()),
        strategies=strategies(),
    )


def strategies() -> tuple[StrategyInfo, ...]:
    """The catalogue of `pruning`, as the server stores it."""
    return tuple(
        StrategyInfo(
            name=info.name,
            summary=info.summary,
            available=info.available,
            granularities=info.granularities,
            targets=info.targets,
            criteria=tuple(
                CriterionInfo(
                    name=criterion.name,
                    summary=criterion.summary,
                    source=criterion.source,
                    granularities=criterion.granularities,
                    needs=criterion.needs,
                )
                for criterion in info.criteria
            ),
            schedules=tuple(
                ScheduleInfo(
                    name=schedule.name,
                    summary=schedule.summary,
                    source=schedule.source,
                    granularities=schedule.granularities,
                )
                for schedule in info.schedules
            ),
            features=info.features,
        )
        for info in pruning.catalogue()
    )


def _cpu() -> DeviceInfo:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    description = f"{platform.processor() or platform.machine()}, {os.cpu_count() or 1} cores"
    return DeviceInfo(name="cpu", description=description, memory_bytes=memory)


def _cuda() -> tuple[DeviceInfo, ...]:
    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            DeviceInfo(name=f"cuda:{index}", description=properties.name, memory_bytes=properties.total_memory)
        )
    return tuple(found)
