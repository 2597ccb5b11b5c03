"""Files that are refused: each with a reason, and a message that says what to change."""

from __future__ import annotations

import gzip
import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn

from helpers.archives import (
    GOOD,
    changed,
    checked,
    entries,
    load,
    npz,
    refusal_of,
    repacked,
    saved,
    truncations,
    zipped,
)
from helpers.models import mlp
from pruning_server.archive.limits import MAX_SOURCE_FILE_BYTES, ZipLimits
from pruning_server.archive.model import check_model
from pruning_server.errors import InvalidArtifactError, Reason

scripted = GOOD["scripted"][0]


def refusal(archive: bytes, **options: object) -> InvalidArtifactError:
    """The refusal of an archive, which must come."""
    with pytest.raises(InvalidArtifactError) as refused:
        check_model(io.BytesIO(archive), **options)
    return refused.value


def torch_saved(value: object, **options: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def exported() -> bytes:
    """What torch.export.save writes."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(mlp().eval(), (torch.zeros(2, 8),)), buffer)
    return buffer.getvalue()


def tar() -> bytes:
    """A tar with nothing of interest."""
    return b"model.pt".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 2000


FOREIGN: dict[str, tuple[Callable[[], bytes], Reason, str]] = {
    "empty": (lambda: b"", Reason.MODEL_NOT_A_ZIP, "empty"),
    "text": (lambda: b"hello, this is a text", Reason.MODEL_NOT_A_ZIP, "text"),
    "random": (lambda: random.Random(0).randbytes(3000), Reason.MODEL_NOT_A_ZIP, "torch.jit.script"),
    "html": (lambda: b"<!DOCTYPE html><html>404</html>", Reason.MODEL_NOT_A_ZIP, "web page"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        Reason.MODEL_NOT_A_ZIP,
        "git lfs pull",
    ),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), Reason.MODEL_NOT_A_ZIP, "HDF5"),
    "gzip": (lambda: gzip.compress(scripted()), Reason.MODEL_NOT_A_ZIP, "gzip"),
    "tar": (tar, Reason.MODEL_NOT_A_ZIP, "tar"),
    "onnx": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80\x01\xff", Reason.MODEL_NOT_A_ZIP, "ONNX"),
    "safetensors": (
        lambda: struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[1],"da'.ljust(40) + bytes(4),
        Reason.MODEL_IS_CHECKPOINT,
        "safetensors",
    ),
    "npy": (lambda: b"\x93NUMPY\x01\x00v\x00", Reason.MODEL_NOT_A_ZIP, "numpy"),
    "npz": (lambda: npz(inputs=np.zeros(3)), Reason.MODEL_NOT_TORCHSCRIPT, "npz"),
    "plain zip": (lambda: zipped({"readme.txt": b"hello"}), Reason.MODEL_NOT_TORCHSCRIPT, "readme.txt"),
    "empty zip": (lambda: zipped({}), Reason.MODEL_NOT_A_ZIP, "empty zip"),
    "state_dict": (lambda: torch_saved(mlp().state_dict()), Reason.MODEL_IS_CHECKPOINT, "state_dict"),
    "pickled module": (lambda: torch_saved(mlp()), Reason.MODEL_IS_CHECKPOINT, "torch.jit.script"),
    "old checkpoint": (
        lambda: torch_saved(mlp().state_dict(), _use_new_zipfile_serialization=False),
        Reason.MODEL_IS_CHECKPOINT,
        "old format",
    ),
    "pickle": (lambda: b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.", Reason.MODEL_IS_CHECKPOINT, "pickle"),
    "exported program": (exported, Reason.MODEL_NOT_TORCHSCRIPT, "torch.export"),
    "keras": (lambda: zipped({"metadata.json": b"{}", "model.weights.h5": b""}), Reason.MODEL_NOT_TORCHSCRIPT, "Keras"),
    "mar": (lambda: zipped({"MAR-INF/MANIFEST.json": b"{}", "m.pt": b""}), Reason.MODEL_NOT_TORCHSCRIPT, "TorchServe"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named(name: str) -> None:
    make, reason, word = FOREIGN[name]
    refused = refusal(make())
    assert refused.reason is reason
    assert word in refused.message
    if name not in {"empty zip", "mar"}:
        assert "torch.jit.script" in refused.message


def quantized() -> bytes:
    """A dynamically quantized net."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear}, dtype=torch.qint8)
        return saved(torch.jit.script(net))


def test_a_quantized_model_is_refused_by_name() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch quantizes nothing on this processor")
    refused = refusal(quantized())
    assert refused.reason is Reason.MODEL_REFUSED
    assert "quantized" in refused.message
    assert "floating-point" in refused.message


def top_level_source(archive: bytes) -> tuple[str, bytes]:
    """Record, without the root folder, and content of the source of the top-level class.

    torch renames a class that is scripted again in the same process: `models.py`, then `models/___torch_mangle_0.py`.
    """
    for name, data in entries(archive).items():
        record = name.split("/", 1)[1]
        if record.startswith("code/__torch__/helpers/models") and record.endswith(".py"):
            return record, data
    raise AssertionError("the archive has no source of helpers.models")


def test_quantized_operations_in_the_source_are_found_and_words_are_not() -> None:
    archive = scripted()
    record, source = top_level_source(archive)
    used = source.replace(b"torch.relu(", b"ops.quantized.relu6(", 1)
    assert used != source
    assert "ops.quantized.relu6" in refusal(changed(archive, {record: used})).message
    word = source.replace(b"def forward", b'_0 : Final[str] = "ops.quantized"\n  def forward', 1)
    assert "forward" in checked(changed(archive, {record: word})).methods


@cache
def good() -> bytes:
    """The archive that is tampered with."""
    return scripted()


def pairs() -> list[tuple[str, bytes]]:
    """Its entries."""
    return list(entries(good()).items())


def root() -> str:
    """Its folder."""
    return pairs()[0][0].split("/")[0]


def source(data: bytes | None) -> bytes:
    """With the top-level source replaced."""
    record, _ = top_level_source(good())
    return changed(good(), {record: data})


# name -> (archive, reason, a word of the message)
TAMPERED: dict[str, tuple[Callable[[], bytes], Reason, str]] = {
    "junk behind": (lambda: good() + b"junk", Reason.MODEL_REFUSED, "4 bytes behind"),
    "junk before": (lambda: b"PK\x03\x04" + good(), Reason.MODEL_CORRUPT, "damaged"),
    "second root": (lambda: zipped([*pairs(), ("a/data.pkl", b"")]), Reason.MODEL_NOT_TORCHSCRIPT, "a/data.pkl"),
    "twice": (lambda: zipped([*pairs(), (f"{root()}/data/0", b"x")]), Reason.MODEL_REFUSED, "twice"),
    "case": (lambda: zipped([*pairs(), (f"{root()}/DATA/0", b"x")]), Reason.MODEL_REFUSED, "case"),
    "dots": (lambda: changed(good(), {"../../etc/passwd": b"x"}), Reason.MODEL_REFUSED, "relative path"),
    "backslash": (lambda: changed(good(), {"a\\b": b"x"}), Reason.MODEL_REFUSED, "relative path"),
    "unknown": (lambda: changed(good(), {"virus.exe": b"x"}), Reason.MODEL_REFUSED, "_extra_files"),
    "no code": (lambda: zipped([p for p in pairs() if "/code/" not in p[0]]), Reason.MODEL_IS_CHECKPOINT, "code"),
    "no constants": (lambda: changed(good(), {"constants.pkl": None}), Reason.MODEL_NOT_TORCHSCRIPT, "constants.pkl"),
    "no version": (lambda: changed(good(), {"version": None}), Reason.MODEL_CORRUPT, "version"),
    "two versions": (lambda: changed(good(), {".data/version": b"4"}), Reason.MODEL_CORRUPT, "two versions"),
    "version 11": (lambda: changed(good(), {"version": b"11\n"}), Reason.MODEL_VERSION_UNSUPPORTED, "11"),
    "version 2": (lambda: changed(good(), {"version": b"2\n"}), Reason.MODEL_VERSION_UNSUPPORTED, "save it again"),
    "version abc": (lambda: changed(good(), {"version": b"abc"}), Reason.MODEL_CORRUPT, "number"),
    "version long": (lambda: changed(good(), {"version": b"3" * 40}), Reason.MODEL_CORRUPT, "number"),
    "big endian": (lambda: changed(good(), {"byteorder": b"big"}), Reason.MODEL_REFUSED, "little-endian"),
    "short tensor": (lambda: changed(good(), {"data/0": b"\0" * 16}), Reason.MODEL_CORRUPT, "16 bytes"),
    "missing tensor": (lambda: changed(good(), {"data/0": None}), Reason.MODEL_CORRUPT, "missing"),
    "no source": (lambda: source(None), Reason.MODEL_CORRUPT, "missing"),
    "other class": (lambda: source(b"class Other(Module):\n  pass\n"), Reason.MODEL_CORRUPT, "missing"),
    "broken source": (lambda: source(b"class ((("), Reason.MODEL_CORRUPT, "not TorchScript"),
    "binary source": (lambda: source(b"class A:\n  \xff\x00"), Reason.MODEL_CORRUPT, "not TorchScript"),
    "nested source": (lambda: source(b"x = " + b"(" * 5000 + b")" * 5000), Reason.MODEL_CORRUPT, "source"),
    "unary source": (lambda: source(b"x = " + b"-" * 100_000 + b"1"), Reason.MODEL_REFUSED, "deep"),
    "chain source": (lambda: source(b"x = 1" + b"+1" * 200_000), Reason.MODEL_REFUSED, "deep"),
    "long source": (lambda: source(b"#" * (MAX_SOURCE_FILE_BYTES + 1)), Reason.MODEL_REFUSED, "at most"),
    "pickle cut": (lambda: changed(good(), {"data.pkl": b"\x80\x02ca\nA\n"}), Reason.MODEL_CORRUPT, "pickle"),
    "pickle opcode": (lambda: changed(good(), {"data.pkl": b"\x80\x02I1\n."}), Reason.MODEL_REFUSED, "INT"),
    "pickle list": (lambda: changed(good(), {"data.pkl": b"\x80\x02]."}), Reason.MODEL_NOT_TORCHSCRIPT, "module"),
    "pickle system": (
        lambda: changed(good(), {"data.pkl": b"\x80\x02cos\nsystem\n)\x81."}), Reason.MODEL_REFUSED, "os.system",
    ),
    "unknown storage": (
        lambda: changed(good(), {"data.pkl": dict(pairs())[f"{root()}/data.pkl"].replace(b"FloatSt", b"BloatSt")}),
        Reason.MODEL_REFUSED, "BloatStorage",
    ),
    "wider storage": (
        lambda: changed(good(), {"data.pkl": dict(pairs())[f"{root()}/data.pkl"].replace(b"FloatSt", b"DoubleSt")}),
        Reason.MODEL_CORRUPT, "declares",
    ),
    "bzip2": (lambda: zipped(pairs(), zipfile.ZIP_BZIP2), Reason.MODEL_REFUSED, "bzip2"),
    "lzma": (lambda: zipped(pairs(), zipfile.ZIP_LZMA), Reason.MODEL_REFUSED, "LZMA"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_archives(name: str) -> None:
    make, reason, word = TAMPERED[name]
    refused = refusal(make())
    assert (refused.reason, word in refused.message) == (reason, True), refused.message


def test_an_encrypted_entry() -> None:
    archive = bytearray(repacked(scripted()))
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        header, directory = source.infolist()[0].header_offset, source.start_dir
    for position in (header + 6, directory + 8):
        archive[position] |= 1
    refused = refusal(bytes(archive))
    assert refused.reason is Reason.MODEL_REFUSED
    assert "password" in refused.message


def test_every_truncation_is_called_one() -> None:
    for archive in truncations(scripted()):
        refused = refusal(archive)
        wanted = Reason.MODEL_TRUNCATED if archive else Reason.MODEL_NOT_A_ZIP
        assert refused.reason is wanted, (len(archive), refused.message)
        assert "cut off" in refused.message or not archive


def test_a_flipped_bit_of_a_tensor_is_found() -> None:
    archive = bytearray(scripted())
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        tensor = max((i for i in source.infolist() if "/data/" in i.filename), key=lambda info: info.file_size)
    archive[tensor.header_offset + 300] ^= 4
    refused = refusal(bytes(archive))
    assert refused.reason is Reason.MODEL_CORRUPT
    assert "checksum" in refused.message


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_with_a_reason_or_does_no_harm(seed: int) -> None:
    chance = random.Random(seed)
    make, example = GOOD[chance.choice(["scripted", "traced", "sparse"])]
    good = repacked(make(), compress=bool(seed % 2))
    wanted = load(good)(example)
    accepted = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 1, 8])):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        refused = refusal_of(partial(checked, bytes(bad)))
        if refused is not None:
            assert refused.reason.value.startswith("MODEL_")
            continue
        accepted += 1
        # Only bytes that mean nothing can have changed: dates, filling, versions.
        assert entries(repacked(bytes(bad))) == entries(good)
        assert torch.equal(load(repacked(bytes(bad)))(example), wanted)
    assert accepted < 150


@pytest.mark.parametrize("seed", range(3))
def test_damage_behind_a_right_checksum_never_crashes_the_gate(seed: int) -> None:
    chance = random.Random(seed)
    content = entries(scripted())
    names = [name for name in content if name.endswith((".pkl", ".py", "version", "byteorder")) and content[name]]
    for _ in range(120):
        name = chance.choice(names)
        data = bytearray(content[name])
        for _ in range(chance.choice([1, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        refused = refusal_of(partial(checked, zipped(content | {name: bytes(data)})))
        assert refused is None or refused.message


def bomb(size: int) -> bytes:
    """A model whose tensor is deflated zeros."""
    net = nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        net.weight.zero_()
    return zipped(entries(saved(torch.jit.script(net))), zipfile.ZIP_DEFLATED)


def test_a_deflated_bomb() -> None:
    limits = ZipLimits(free_bytes=1 << 20)
    assert "unpacks" in refusal(bomb(1 << 20), limits=limits).message
    assert check_model(io.BytesIO(bomb(1 << 17)), limits=limits).tensor_bytes == 4 << 17


def test_an_entry_that_unpacks_to_more_than_it_declares() -> None:
    archive = bytearray(bomb(1 << 16))
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        info = next(info for info in source.infolist() if info.file_size == 4 << 16)
        position = bytes(archive).index(info.filename.encode(), source.start_dir) - 46
    for at in (info.header_offset + 22, position + 24):
        archive[at : at + 4] = struct.pack("<I", 1 << 16)
    refused = refusal(bytes(archive))
    assert refused.reason is Reason.MODEL_CORRUPT


def test_too_many_entries() -> None:
    many = changed(scripted(), {f"extra/{number}": b"" for number in range(100)})
    assert "at most 50" in refusal(many, limits=ZipLimits(max_entries=50)).message


def test_messages_carry_no_raw_names() -> None:
    refused = refusal(changed(scripted(), {"a\x1b[31m" + "b" * 500: b""}))
    assert "\x1b" not in refused.message
    assert len(refused.message) < 400
