"""Which device a request gets, and how many jobs a device takes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.standin_worker import PROBE
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.jobs.devices import DeviceSlots, device_type, resolve_device
from pruning_server.jobs.probe import DeviceInfo, Probe


def devices(*names: str) -> tuple[DeviceInfo, ...]:
    return tuple(DeviceInfo(name=name, description="", memory_bytes=1) for name in names)


def probe(*names: str) -> Probe:
    return msgspec.structs.replace(PROBE, devices=devices(*names))


@pytest.mark.parametrize(
    ("requested", "names", "resolved"),
    [
        ("auto", ("cpu",), "cpu"),
        ("", ("cpu",), "cpu"),
        ("auto", ("cpu", "cuda:0"), "cuda"),
        ("cuda", ("cpu", "cuda:0", "cuda:1"), "cuda"),
        ("cuda:1", ("cpu", "cuda:0", "cuda:1"), "cuda:1"),
        ("cpu", ("cpu", "cuda:0"), "cpu"),
    ],
)
def test_a_device_that_is_there_is_taken(requested: str, names: tuple[str, ...], resolved: str) -> None:
    assert resolve_device(requested, probe(*names)) == resolved


@pytest.mark.parametrize(
    ("requested", "names", "hint"),
    [
        ("cuda", ("cpu",), "no CUDA device"),
        ("cuda:0", ("cpu",), "no CUDA device"),
        ("cuda:1", ("cpu", "cuda:0"), "cuda:1"),
        ("tpu", ("cpu",), "tpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    requested: str, names: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(InvalidRequestError, match=hint) as caught:
        resolve_device(requested, probe(*names))
    assert caught.value.reason is Reason.UNKNOWN_DEVICE
    assert caught.value.violations[0].field == "spec.device"
    assert all(name in caught.value.message for name in names)


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.booleans(), max_size=60))
def test_no_device_ever_runs_more_than_its_slots(cpu_slots: int, cuda_slots: int, moves: list[bool]) -> None:
    slots = DeviceSlots(devices("cpu", "cuda:0", "cuda:1"), cpu_slots=cpu_slots, cuda_slots_per_device=cuda_slots)
    leased: list[str] = []
    for lease in moves:
        free = slots.free()
        if lease and free:
            slots.lease(free[0])
            leased.append(free[0])
        elif leased:
            slots.give_back(leased.pop())
        for name, (used, total) in slots.usage().items():
            assert used == leased.count(name)
            assert 0 <= used <= total == (cpu_slots if device_type(name) == "cpu" else cuda_slots)
    assert set(slots.free()) == {name for name, (used, total) in slots.usage().items() if used < total}


def test_jobs_spread_over_equal_devices() -> None:
    slots = DeviceSlots(devices("cpu", "cuda:0", "cuda:1"), cpu_slots=1, cuda_slots_per_device=2)
    slots.lease("cuda:0")
    assert [name for name in slots.free() if name.startswith("cuda")] == ["cuda:1", "cuda:0"]
