"""TorchScript archives and datasets as bytes, good ones and tampered ones."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import nn

from helpers.models import ConvNet, mlp
from pruning_server.archive.model import check_model, repack_model
from pruning_server.errors import InvalidArtifactError
from pruning_server.spec.artifacts import ModelSummary


class ManySided(nn.Module):
    """Attributes of many kinds, shared and special tensors, two methods."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {"a": 1, "b": 2**40}
        self.words = ["x", "y"]
        self.mixed = (1, 2.5, "q")
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
        self.tied = self.weight
        self.register_buffer("narrow", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("part", torch.arange(10.0)[2:5])
        self.register_buffer("rotations", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("scattered", torch.eye(3).to_sparse())

    @torch.jit.export
    def scaled(self, x: torch.Tensor, factor: int) -> torch.Tensor:
        """A second method."""
        return x * factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [N, 4]."""
        return x @ self.weight + self.tied.sum() + self.names["a"]


def saved(module: torch.jit.ScriptModule, extra_files: dict[str, str] | None = None) -> bytes:
    """The archive of a script module."""
    return module.save_to_buffer(_extra_files=extra_files or {})


@cache
def scripted() -> bytes:
    """A small net, scripted, with extra files."""
    torch.manual_seed(3)
    return saved(torch.jit.script(ConvNet().eval()), {"labels.txt": "low\nhigh", "config/é.bin": "ä", "README": ""})


@cache
def traced() -> bytes:
    """A small net, traced."""
    return saved(torch.jit.trace(mlp().eval(), torch.zeros(2, 8)))


@cache
def frozen() -> bytes:
    """A small net whose weights are constants."""
    return saved(torch.jit.freeze(torch.jit.script(ConvNet().eval())))


@cache
def many_sided() -> bytes:
    """See `ManySided`."""
    return saved(torch.jit.script(ManySided()))


@cache
def sparse() -> bytes:
    """A net whose weights are mostly 0."""
    net = nn.Sequential(nn.Linear(8, 200), nn.Linear(200, 3))
    with torch.no_grad():
        for weight in net.parameters():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.9] = 0
    return saved(torch.jit.script(net))


# name -> (archive, an input of the model)
GOOD: dict[str, tuple[Callable[[], bytes], torch.Tensor]] = {
    "scripted": (scripted, torch.ones(2, 1, 8, 8)),
    "traced": (traced, torch.ones(2, 8)),
    "frozen": (frozen, torch.ones(2, 1, 8, 8)),
    "many-sided": (many_sided, torch.ones(2, 4)),
    "sparse": (sparse, torch.ones(2, 8)),
}


def repacked(archive: bytes, *, compress: bool = False) -> bytes:
    """The canonical archive."""
    destination = io.BytesIO()
    repack_model(io.BytesIO(archive), destination, compress=compress)
    return destination.getvalue()


def checked(archive: bytes) -> ModelSummary:
    """What the gate says."""
    return check_model(io.BytesIO(archive))


def load(archive: bytes) -> torch.jit.ScriptModule:
    """Loads with plain torch."""
    return torch.jit.load(io.BytesIO(archive))


def entries(archive: bytes) -> dict[str, bytes]:
    """Name -> content, in order."""
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {info.filename: source.read(info) for info in source.infolist()}


def zipped(content: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these entries; a list may hold a name twice."""
    buffer = io.BytesIO()
    pairs = content.items() if isinstance(content, dict) else content
    with zipfile.ZipFile(buffer, "w", method) as target, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        for name, data in pairs:
            target.writestr(name, data)
    return buffer.getvalue()


def changed(archive: bytes, changes: dict[str, bytes | None]) -> bytes:
    """The archive with some records, named below the root, replaced, added, or (None) removed."""
    content = entries(archive)
    root = next(iter(content)).split("/")[0]
    for record, data in changes.items():
        if data is None:
            del content[f"{root}/{record}"]
        else:
            content[f"{root}/{record}"] = data
    return zipped(content)


def npz(*, compressed: bool = False, **arrays: np.ndarray) -> bytes:
    """An .npz with these arrays."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def truncations(data: bytes, parts: int = 50) -> Iterator[bytes]:
    """The data cut off at every 1/parts of its length."""
    for part in range(parts):
        yield data[: len(data) * part // parts]


def refusal_of(call: Callable[[], object]) -> InvalidArtifactError | None:
    """The refusal that a call ends in, None if it succeeds; every other exception comes through."""
    try:
        call()
    except InvalidArtifactError as refused:
        return refused
    return None
