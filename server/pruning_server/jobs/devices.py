"""Which device a job runs on, and how many jobs a device takes at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.jobs.probe import DeviceInfo, Probe

CPU = "cpu"
CUDA = "cuda"


def device_type(device: str) -> str:
    """`cpu` or `cuda`: what a device's name starts with; a metric label."""
    return device.split(":", maxsplit=1)[0]


def resolve_device(requested: str, probe: Probe) -> str:
    """Turns the device of a request into what the job waits for: `cpu`, `cuda` (any) or `cuda:N`.

    Raises:
        InvalidRequestError: the server has no such device; the message lists those that it has.
    """
    names = [device.name for device in probe.devices]
    has_cuda = any(device_type(name) == CUDA for name in names)
    wanted = requested or "auto"
    if wanted == "auto":
        return CUDA if has_cuda else CPU
    if wanted in names or (wanted == CUDA and has_cuda):
        return wanted
    known = ", ".join(["auto", *names])
    hint = "this server has no CUDA device" if device_type(wanted) == CUDA and not has_cuda else f"no device {wanted!r}"
    raise InvalidRequestError.for_field("spec.device", f"{hint}; use one of {known}", Reason.UNKNOWN_DEVICE)


class DeviceSlots:
    """Counts the jobs on every device; a device is free while it runs fewer than its slots."""

    def __init__(self, devices: Sequence[DeviceInfo], *, cpu_slots: int, cuda_slots_per_device: int) -> None:
        self._lock = threading.Lock()
        self._total = {
            device.name: cpu_slots if device_type(device.name) == CPU else cuda_slots_per_device for device in devices
        }
        self._used = dict.fromkeys(self._total, 0)

    def names(self) -> tuple[str, ...]:
        """Every device, free or not."""
        return tuple(self._total)

    def free(self) -> tuple[str, ...]:
        """Devices that take another job, the least used first, so that jobs spread over equal devices."""
        with self._lock:
            open_devices = [name for name, total in self._total.items() if self._used[name] < total]
            return tuple(sorted(open_devices, key=lambda name: self._used[name] / self._total[name]))

    def lease(self, device: str) -> None:
        """Takes one slot."""
        with self._lock:
            self._used[device] += 1

    def give_back(self, device: str) -> None:
        """Frees one slot."""
        with self._lock:
            self._used[device] -= 1

    def usage(self) -> dict[str, tuple[int, int]]:
        """Per device: (slots used, slots)."""
        with self._lock:
            return {name: (self._used[name], total) for name, total in self._total.items()}
