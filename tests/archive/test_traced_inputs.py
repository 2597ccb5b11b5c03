"""What a traced archive remembers of its example inputs, read without unpickling."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
import torch

from helpers.archives import repacked, saved, scripted
from pruning_server.archive.traced_inputs import read_traced_inputs
from pruning_server.errors import InvalidArtifactError
from pruning_server.spec.inspection import MAX_INPUT_ELEMENTS, TensorSpec


class Mixed(torch.nn.Module):
    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return x * i.sum()


class Nested(torch.nn.Module):
    def forward(self, x: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return x[0] + x[1]


def traced(module: torch.nn.Module, *inputs: object) -> bytes:
    return saved(torch.jit.trace(module.eval(), inputs))


def read(archive: bytes) -> object:
    return read_traced_inputs(io.BytesIO(archive))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_shapes_and_dtypes_are_those_of_the_trace(dtype: torch.dtype) -> None:
    archive = traced(Mixed(), torch.zeros(2, 3, 4, 5, 6, dtype=dtype), torch.zeros(7, dtype=torch.int64))
    expected = (
        TensorSpec(shape=(2, 3, 4, 5, 6), dtype=str(dtype).removeprefix("torch.")),
        TensorSpec(shape=(7,), dtype="int64"),
    )
    assert read(archive) == expected
    assert read(repacked(archive)) == expected


def test_views_and_shared_inputs() -> None:
    x = torch.zeros(4, 6).t()[1:3]
    assert read(traced(Mixed(), x, x)) == (TensorSpec(shape=(2, 4)), TensorSpec(shape=(2, 4)))


def test_an_archive_that_says_nothing_or_something_else() -> None:
    assert read(scripted()) is None
    assert read(traced(Nested(), (torch.zeros(2), torch.zeros(2)))) is None


def replaced(archive: bytes, data: bytes) -> bytes:
    """The archive with other bytes as its record of example inputs."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(written, "w") as new:
        for info in old.infolist():
            new.writestr(info, data if info.filename.endswith("/traced_inputs.pkl") else old.read(info))
    return written.getvalue()


def record(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return next(opened.read(n) for n in opened.namelist() if n.endswith("/traced_inputs.pkl"))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools' own, about a damaged string
def test_any_damage_is_nothing_known_or_a_refusal() -> None:
    archive = traced(Mixed(), torch.zeros(2, 3), torch.zeros(7, dtype=torch.int64))
    data, source = record(archive), random.Random(0)
    for _ in range(400):
        harmed = bytearray(data)
        for _ in range(source.randint(1, 3)):
            harmed[source.randrange(len(harmed))] = source.randrange(256)
        try:
            found = read_traced_inputs(io.BytesIO(replaced(archive, bytes(harmed[: source.randint(1, len(data))]))))
        except InvalidArtifactError:
            continue
        assert found is None or all(isinstance(value, TensorSpec | int | float | str | None) for value in found)


def test_a_shape_that_would_cost_a_machine_is_not_believed() -> None:
    archive = traced(Mixed(), torch.zeros(2, 3), torch.zeros(7, dtype=torch.int64))
    data = record(archive)
    size = b"J" + (MAX_INPUT_ELEMENTS + 1).to_bytes(4, "little")
    assert data.count(b"K\x07") == 2
    assert read(replaced(archive, data.replace(b"K\x07", size))) is None
