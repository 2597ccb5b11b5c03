"""Datasets: what the gate accepts, what comes out canonically, and what it refuses."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from safetensors.torch import save as save_torch_safetensors

from helpers.archives import entries, npz, refusal_of, scripted, truncations, zipped
from helpers.shared_data import shared_file
from pruning_server.archive.dataset import Dataset, check_dataset, open_dataset, repack_dataset
from pruning_server.archive.limits import ALIGNMENT_BYTES, ZipLimits
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import DatasetSummary

N = 12
DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def values(dtype: str, shape: tuple[int, ...] = (N, 3, 2)) -> np.ndarray:
    """Some values of a dtype."""
    return (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)


def repack(data: bytes, folder: Path) -> tuple[DatasetSummary, Path]:
    """Re-packs by way of real files, which may be mapped into memory."""
    source, destination = folder / "source", folder / "destination"
    source.write_bytes(data)
    with source.open("rb") as reader, destination.open("w+b") as writer:
        return repack_dataset(reader, writer), destination


def opened(data: bytes, folder: Path) -> Dataset:
    """The canonical copy, opened."""
    return open_dataset(repack(data, folder)[1])


def refusal(data: bytes, **options: object) -> InvalidArtifactError:
    """The refusal of a dataset, which must come from checking and from re-packing."""
    with pytest.raises(InvalidArtifactError) as refused:
        check_dataset(io.BytesIO(data), **options)
    with pytest.raises(InvalidArtifactError):
        repack_dataset(io.BytesIO(data), io.BytesIO(), **options)
    return refused.value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("container", ["npz", "npz compressed", "safetensors"])
def test_every_dtype_survives(dtype: str, container: str, tmp_path: Path) -> None:
    arrays = {"inputs": values(dtype), "targets": np.arange(N)}
    data = save_safetensors(arrays) if container == "safetensors" else npz(compressed="comp" in container, **arrays)
    summary, path = repack(data, tmp_path)
    dataset = open_dataset(path)
    assert dataset.inputs[0].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(dataset.inputs[0], arrays["inputs"])
    np.testing.assert_array_equal(dataset.targets, arrays["targets"])
    assert (dataset.samples, dataset.split, dataset.groups) == (N, None, None)
    assert summary.container == container.split(maxsplit=1)[0]
    assert [(i.name, i.dtype, i.shape) for i in summary.inputs] == [("inputs", dtype, (N, 3, 2))]
    assert summary.targets is not None
    assert (summary.samples, summary.has_split, summary.has_groups) == (N, False, False)
    assert summary.size_bytes == path.stat().st_size


@settings(max_examples=60, deadline=None)
@given(
    inputs=hnp.arrays(
        dtype=st.sampled_from([np.dtype(d) for d in ["<f4", ">f4", "<f8", ">i2", "|u1", "|b1", "<i8"]]),
        shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_the_canonical_copy_holds_the_same_values_and_is_its_own_copy(
    inputs: np.ndarray, fortran: bool, compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    inputs = np.asfortranarray(inputs) if fortran else np.ascontiguousarray(inputs)
    summary, path = repack(npz(compressed=compressed, inputs=inputs), folder)
    once = path.read_bytes()
    with np.load(io.BytesIO(once)) as loaded:
        np.testing.assert_array_equal(loaded["inputs"], inputs)
        assert loaded["inputs"].flags.c_contiguous
        assert loaded["inputs"].dtype.isnative
    np.testing.assert_array_equal(open_dataset(path).inputs[0], inputs)
    assert repack(once, folder)[0] == summary
    assert (folder / "destination").read_bytes() == once
    assert check_dataset(io.BytesIO(once)) == summary


def test_arrays_are_mapped_aligned_and_read_only(tmp_path: Path) -> None:
    dataset = opened(npz(compressed=True, inputs=values("float32"), targets=np.arange(N)), tmp_path)
    for array in (dataset.inputs[0], dataset.targets):
        assert array is not None
        assert array.ctypes.data % ALIGNMENT_BYTES == 0
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert type(torch.from_numpy(dataset.inputs[0][[0, 2]])) is torch.Tensor


def test_several_inputs_split_and_groups(tmp_path: Path) -> None:
    arrays = {f"inputs_{i}": values("float32", (N, i + 1)) for i in range(11)}
    marks, groups = np.arange(N, dtype=np.uint8) % 4, np.array([f"patient {i % 3}" for i in range(N)])
    summary, path = repack(npz(targets=values("float64", (N,)), split=marks, groups=groups, **arrays), tmp_path)
    dataset = open_dataset(path)
    assert [array.shape[1] for array in dataset.inputs] == list(range(1, 12))
    np.testing.assert_array_equal(dataset.split, marks)
    np.testing.assert_array_equal(dataset.groups, groups)
    assert summary.has_split
    assert summary.has_groups


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    tensor = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    dataset = opened(save_torch_safetensors({"inputs": tensor, "targets": torch.arange(N)}), tmp_path)
    assert dataset.input_dtypes == ("bfloat16",)
    assert torch.equal(torch.from_numpy(dataset.inputs[0].copy()).view(torch.bfloat16), tensor)


def test_the_canonical_safetensors_is_one(tmp_path: Path) -> None:
    arrays = {"inputs": values("uint8"), "targets": np.arange(N), "split": np.zeros(N, np.uint8)}
    _, path = repack(save_safetensors(arrays, {"made": "by hand"}), tmp_path)
    once = path.read_bytes()
    assert {name: array.tolist() for name, array in load_safetensors(once).items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    repack(once, tmp_path)
    assert path.read_bytes() == once


def test_fortran_order_of_a_large_compressed_array_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.asfortranarray(values("float32", (50, 20)))
    destination = io.BytesIO()
    repack_dataset(io.BytesIO(npz(compressed=True, inputs=array)), destination)
    with np.load(io.BytesIO(destination.getvalue())) as loaded:
        np.testing.assert_array_equal(loaded["inputs"], array)
    monkeypatch.setattr("pruning_server.archive.dataset.MAX_UNMAPPED_TURN_BYTES", 100)
    with pytest.raises(InvalidArtifactError, match="ascontiguousarray"):
        repack_dataset(io.BytesIO(npz(compressed=True, inputs=array)), io.BytesIO())


def bad_float(row: int, value: float, dtype: str = "float32", fortran: bool = False) -> np.ndarray:
    """Numbers with a bad one in a row."""
    array = np.ones((N, 4), dtype=dtype, order="F" if fortran else "C")
    array[row, 2] = value
    array[N - 1, 3] = np.nan
    return array


X = values("float32")
BAD: dict[str, tuple[Callable[[], bytes], Reason, str]] = {
    "empty file": (lambda: b"", Reason.DATASET_UNREADABLE, "empty"),
    "text": (lambda: b"a,b,c\n1,2,3\n", Reason.DATASET_UNREADABLE, "text"),
    "pickle": (lambda: b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.", Reason.DATASET_UNREADABLE, "pickle"),
    "npy": (lambda: entries(npz(inputs=X))["inputs.npy"], Reason.DATASET_UNREADABLE, "single numpy array"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), Reason.DATASET_UNREADABLE, "HDF5"),
    "parquet": (lambda: b"PAR1" + bytes(99), Reason.DATASET_UNREADABLE, "Parquet"),
    "model": (scripted, Reason.DATASET_UNREADABLE, "TorchScript"),
    "checkpoint": (
        lambda: zipped({"a/data.pkl": b"", "a/version": b"3"}), Reason.DATASET_UNREADABLE, "checkpoint",
    ),
    "zip": (lambda: zipped({"a.txt": b""}), Reason.DATASET_UNREADABLE, "without numpy"),
    "zip and more": (
        lambda: zipped(entries(npz(inputs=X)) | {"notes.txt": b""}), Reason.DATASET_UNREADABLE, "notes.txt",
    ),
    "cut": (lambda: npz(inputs=X)[:300], Reason.DATASET_UNREADABLE, "cut off"),
    "not an array": (lambda: zipped({"inputs.npy": b"hello, world"}), Reason.DATASET_UNREADABLE, "not a numpy"),
    "longer than declared": (
        lambda: zipped({"inputs.npy": entries(npz(inputs=X))["inputs.npy"] + b"x"}), Reason.DATASET_UNREADABLE, "bytes",
    ),
    "shorter than declared": (
        lambda: zipped({"inputs.npy": entries(npz(inputs=X))["inputs.npy"][:-1]}), Reason.DATASET_UNREADABLE, "bytes",
    ),
    "images and labels": (lambda: npz(images=X, labels=np.arange(N)), Reason.DATASET_KEYS, "rename 'images' to 'inputs'"),
    "labels only": (lambda: npz(inputs=X, labels=np.arange(N)), Reason.DATASET_KEYS, "rename 'labels' to 'targets'"),
    "unknown": (lambda: npz(inputs=X, weights=np.ones(N)), Reason.DATASET_KEYS, "weights"),
    "no inputs": (lambda: npz(targets=np.arange(N)), Reason.DATASET_KEYS, "inputs"),
    "both inputs": (lambda: npz(inputs=X, inputs_0=X), Reason.DATASET_KEYS, "inputs_0"),
    "hole": (lambda: npz(inputs_0=X, inputs_2=X), Reason.DATASET_KEYS, "no inputs_1"),
    "from one": (lambda: npz(inputs_1=X), Reason.DATASET_KEYS, "no inputs_0"),
    "leading zero": (lambda: npz(inputs_0=X, inputs_01=X), Reason.DATASET_KEYS, "inputs_01"),
    "lengths": (lambda: npz(inputs=X, targets=np.arange(N - 1)), Reason.DATASET_LENGTHS_DIFFER, "targets 11"),
    "scalar": (lambda: npz(inputs=np.float32(1)), Reason.DATASET_LENGTHS_DIFFER, "first axis"),
    "wide split": (lambda: npz(inputs=X, split=np.zeros((N, 2), np.uint8)), Reason.DATASET_LENGTHS_DIFFER, "split"),
    "no samples": (lambda: npz(inputs=X[:0], targets=np.arange(0)), Reason.DATASET_EMPTY, "(0, 3, 2)"),
    "no features": (lambda: npz(inputs=np.zeros((N, 0), np.float32)), Reason.DATASET_EMPTY, "(12, 0)"),
    "objects": (lambda: npz(inputs=np.array([{}] * 4)), Reason.DATASET_DTYPE, "objects"),
    "records": (lambda: npz(inputs=np.zeros(N, "f4,i4")), Reason.DATASET_DTYPE, "fields"),
    "dates": (lambda: npz(inputs=np.zeros(N, "M8[s]")), Reason.DATASET_DTYPE, "dates"),
    "complex": (lambda: npz(inputs=np.zeros(N, complex)), Reason.DATASET_DTYPE, "complex"),
    "strings": (lambda: npz(inputs=np.array(["a"] * N)), Reason.DATASET_DTYPE, "inputs"),
    "long double": (lambda: npz(inputs=np.zeros(N, np.longdouble)), Reason.DATASET_DTYPE, "float"),
    "unsigned targets": (lambda: npz(inputs=X, targets=np.arange(N, dtype=np.uint32)), Reason.DATASET_DTYPE, "targets"),
    "signed split": (lambda: npz(inputs=X, split=np.zeros(N, int)), Reason.DATASET_DTYPE, "uint8"),
    "float groups": (lambda: npz(inputs=X, groups=np.zeros(N)), Reason.DATASET_DTYPE, "groups"),
    "split value": (
        lambda: npz(inputs=X, split=np.array([0, 1, 2, 3, 4] + [0] * (N - 5), np.uint8)), Reason.DATASET_SPLIT, "split[4]",
    ),
    "nan": (lambda: npz(inputs=bad_float(5, np.nan)), Reason.DATASET_NOT_FINITE, "'inputs' holds NaN, first in row 5"),
    "inf": (lambda: npz(inputs=bad_float(0, -np.inf)), Reason.DATASET_NOT_FINITE, "Inf, first in row 0"),
    "half nan": (lambda: npz(inputs=bad_float(7, np.nan, "float16")), Reason.DATASET_NOT_FINITE, "row 7"),
    "fortran nan": (lambda: npz(inputs=bad_float(3, np.nan, fortran=True)), Reason.DATASET_NOT_FINITE, "row 3"),
    "compressed nan": (lambda: npz(compressed=True, inputs=bad_float(9, np.nan)), Reason.DATASET_NOT_FINITE, "row 9"),
    "big-endian nan": (lambda: npz(inputs=bad_float(2, np.nan, ">f8")), Reason.DATASET_NOT_FINITE, "row 2"),
    "target nan": (
        lambda: npz(inputs=X, targets=bad_float(4, np.nan)), Reason.DATASET_NOT_FINITE, "'targets' holds NaN",
    ),
    "bfloat16 nan": (
        lambda: save_torch_safetensors({"inputs": torch.tensor([1.0, float("nan")]).bfloat16()}),
        Reason.DATASET_NOT_FINITE, "row 1",
    ),
    "float8": (
        lambda: save_torch_safetensors({"inputs": torch.ones(4).to(torch.float8_e5m2)}), Reason.DATASET_DTYPE, "F8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_datasets(name: str) -> None:
    make, reason, word = BAD[name]
    refused = refusal(make())
    assert (refused.reason, word in refused.message) == (reason, True), refused.message


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header, as an object or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    """A tensor's description."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (safetensors_file({"inputs": tensor(0, 4, [5])}, b"1234"), "bytes"),
        (safetensors_file({"inputs": tensor(1, 5, [4])}, b"12345"), "expected"),
        (safetensors_file({"inputs": tensor(0, 4, [4]), "targets": tensor(2, 6, [4])}, b"123456"), "expected"),
        (safetensors_file({"inputs": tensor(0, 4, [4])}, b"123"), "cut off"),
        (safetensors_file({"inputs": tensor(0, 4, [4])}, b"12345"), "behind"),
        (safetensors_file({"inputs": tensor(0, 4, [-4])}, b"1234"), "shape"),
        (safetensors_file({"inputs": tensor(0, 4, [4.0])}, b"1234"), "shape"),
        (safetensors_file({"inputs": tensor(0, 4, [True])}, b"1234"), "shape"),
        (safetensors_file({"inputs": tensor(0, 1 << 60, [1 << 60])}, b"1234"), "shape"),
        (safetensors_file({"inputs": [0, 4]}, b"1234"), "description"),
        (safetensors_file(b'{"inputs":1,"inputs":2}'), "twice"),
        (safetensors_file(b"{" * 5000), "not valid"),
        (safetensors_file(b'{"a":\xff}'), "not valid"),
    ],
)
def test_bad_safetensors(data: bytes, word: str) -> None:
    refused = refusal(data)
    assert refused.reason is Reason.DATASET_UNREADABLE
    assert word in refused.message


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """An .npz of one hand-written array."""
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return zipped({"inputs.npy": b"\x93NUMPY" + bytes([version, 0]) + length + text + data})


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': 1, }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", b"1234"),
        npy("{'descr': '<f4', 'shape': (1,)}", b"1234"),
        npy("__import__('os').system('true')"),
        npy("(" * 3000),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 100 + ")" * 100 + "}"),
        npy("[[1]]"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)*99999}"),
        npy("x" * 60000),
        npy("{}", version=9),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + str((1,) * 40) + "}", b"1234"),
        zipped({"inputs.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31)}),
    ],
)
def test_bad_headers_cost_nothing(data: bytes) -> None:
    assert refusal(data).reason is Reason.DATASET_UNREADABLE


@pytest.mark.parametrize("version", [2, 3])
def test_other_versions_of_the_header(version: int, tmp_path: Path) -> None:
    data = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", np.float32(3).tobytes(), version)
    np.testing.assert_array_equal(opened(data, tmp_path).inputs[0], [3])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = npz(compressed=True, inputs=np.zeros((1000, 1000)))
    refused = refusal(data, limits=ZipLimits(free_bytes=1 << 20))
    assert "unpacks" in refused.message


def test_truncations_and_flips_are_refused_or_harmless() -> None:
    chance = random.Random(0)
    inputs = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    arrays = {"inputs": inputs, "targets": np.arange(N)}
    for data in (npz(**arrays), npz(compressed=True, **arrays), save_safetensors(arrays)):
        for cut in truncations(data):
            refusal(cut)
        for _ in range(200):
            bad = bytearray(data)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            destination = io.BytesIO()
            refused = refusal_of(partial(repack_dataset, io.BytesIO(bad), destination))
            if refused is not None:
                assert refused.reason.value.startswith("DATASET_")
            elif data.startswith(b"PK"):
                with np.load(io.BytesIO(destination.getvalue())) as loaded:
                    np.testing.assert_array_equal(loaded["inputs"], inputs)


def test_a_real_image_set_is_told_what_to_rename(tmp_path: Path) -> None:
    path = shared_file("cifar10_test.npz")
    with path.open("rb") as source, pytest.raises(InvalidArtifactError) as refused:
        check_dataset(source)
    assert refused.value.reason is Reason.DATASET_KEYS
    assert "rename 'images' to 'inputs'" in refused.value.message
    assert "rename 'labels' to 'targets'" in refused.value.message
    with np.load(path) as images:
        data = npz(compressed=True, inputs=images["images"][:500], targets=images["labels"][:500])
        np.testing.assert_array_equal(opened(data, tmp_path).inputs[0], images["images"][:500])
