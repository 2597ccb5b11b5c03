"""Checks a TorchScript archive and writes it anew, without running or unpickling any of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from pruning_server.archive.foreign import HEAD_BYTES, LOCAL_ZIP_MAGIC, SAVE_AS_TORCHSCRIPT, recognise, recognise_zip
from pruning_server.archive.limits import (
    DEFAULT_LIMITS,
    MAX_CODE_BYTES,
    MAX_PICKLE_BYTES,
    MAX_SMALL_RECORD_BYTES,
    MAX_SOURCE_FILE_BYTES,
    ZipLimits,
)
from pruning_server.archive.pickle_reader import PickleSummary, read_pickle
from pruning_server.archive.refusals import MODEL_REFUSALS, shown
from pruning_server.archive.source_reader import find_unsupported, is_script_class, read_methods, source_record
from pruning_server.archive.zip_directory import STORED, Entry, read_directory
from pruning_server.archive.zip_records import read_all, stream, stream_blocks, verify
from pruning_server.archive.zip_writer import ZipWriter
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import ModelSummary

MIN_VERSION = 3
MAX_VERSION = 10
# A record is deflated only where that saves at least a tenth: reading it back costs time and memory.
_WORTHWHILE_PERCENT = 90

_DATA = "data.pkl"
_CONSTANTS = "constants.pkl"
_BYTE_ORDER = "byteorder"
_VERSIONS = (".data/version", "version")
_SMALL_RECORDS = frozenset({*_VERSIONS, _BYTE_ORDER, ".data/serialization_id", ".format_version", ".storage_alignment"})
_PICKLES = frozenset({_DATA, _CONSTANTS, "traced_inputs.pkl"})
# The bytecode of the lite interpreter: a second copy of the code, which torch.jit.load ignores and pruning would falsify.
_DROPPED = frozenset({"bytecode.pkl", "mobile_debug_handles.pkl"})
_TENSOR_FOLDERS = ("data/", "constants/", "traced_inputs/")
_CODE_SUFFIXES = (".py", ".py.debug_pkl")
_EXTRA_FOLDER = "extra/"
_UNSUPPORTED_GLOBALS = ("__torch__.torch.classes.", "torch._utils _rebuild_qtensor", "torch per_")


@dataclass(frozen=True)
class _Model:
    """An archive whose table of contents, pickles and top-level source were checked; records by name below the root."""

    root: str
    records: dict[str, Entry]
    version: int
    methods: tuple[str, ...]

    def summary(self, size_bytes: int) -> ModelSummary:
        """What the gate says about it."""
        tensors = (entry for name, entry in self.records.items() if name.startswith(_TENSOR_FOLDERS))
        code = (entry for name, entry in self.records.items() if name.endswith(".py"))
        return ModelSummary(
            format_version=self.version,
            root=self.root,
            methods=self.methods,
            tensor_bytes=sum(entry.size_bytes for entry in tensors),
            code_bytes=sum(entry.size_bytes for entry in code),
            size_bytes=size_bytes,
            extra_files=tuple(n.removeprefix(_EXTRA_FOLDER) for n in self.records if n.startswith(_EXTRA_FOLDER)),
        )


def check_model(source: BinaryIO, *, limits: ZipLimits = DEFAULT_LIMITS) -> ModelSummary:
    """Reads a whole archive once, in flat memory, and returns what it holds.

    Raises:
        InvalidArtifactError: it is no TorchScript archive that the service takes; the message says what to change.
    """
    model = _open(source, limits)
    for entry in model.records.values():
        verify(source, entry, MODEL_REFUSALS)
    return model.summary(source.seek(0, os.SEEK_END))


def repack_model(
    source: BinaryIO, destination: BinaryIO, *, compress: bool, limits: ZipLimits = DEFAULT_LIMITS
) -> ModelSummary:
    """Checks an archive and writes the same records in the same order as a canonical zip; twice gives the same bytes.

    Every payload is aligned to 64 bytes. Records keep their compression; with `compress`, stored records of tensors
    that shrink to 90 % or less are deflated. The lite interpreter's bytecode is left out.

    Args:
        source: the archive, seekable.
        destination: empty, writable and seekable; what it holds after a refusal is of no use.
        compress: whether tensors are deflated.
        limits: caps of the zip.

    Returns:
        the summary of what was written.

    Raises:
        InvalidArtifactError: as for `check_model`.
    """
    model = _open(source, limits)
    writer = ZipWriter(destination)
    packed_bytes = unpacked_bytes = 0
    for record, entry in model.records.items():
        name = f"{model.root}/{record}"
        written = None
        if compress and entry.method == STORED and record.startswith(_TENSOR_FOLDERS):
            unpacked = unpacked_bytes + entry.size_bytes
            # What we write must pass the gate again, so it must not be packed so well that it looks like a bomb.
            fewest = -(-unpacked // limits.max_ratio) - packed_bytes if unpacked > limits.free_bytes else 0
            acceptable = range(fewest, entry.size_bytes * _WORTHWHILE_PERCENT // 100 + 1)
            written = writer.deflate(name, entry, stream(source, entry, MODEL_REFUSALS), acceptable)
        if written is None:
            written = writer.copy(name, entry, _packed(source, entry))
        packed_bytes += written.packed_bytes
        unpacked_bytes += written.size_bytes
    return model.summary(writer.close())


def _packed(source: BinaryIO, entry: Entry) -> Iterable[bytes]:
    return (block.packed for block in stream_blocks(source, entry, MODEL_REFUSALS) if block.packed)


def _open(source: BinaryIO, limits: ZipLimits) -> _Model:
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    _check_head(source.read(HEAD_BYTES), size)
    entries = read_directory(source, MODEL_REFUSALS, limits)
    _check_format([entry.name for entry in entries])
    root, records = _below_root(entries)
    _check_records(records)
    version = _read_version(source, records)
    _check_byte_order(source, records)
    for record in _PICKLES & records.keys():
        summary = read_pickle(_read(source, records, record, MAX_PICKLE_BYTES), MODEL_REFUSALS, record)
        _check_globals(summary)
        if record != "traced_inputs.pkl":  # Its tensors are never read; torch writes them empty.
            _check_storages(summary, record.removesuffix(".pkl"), records)
        if record == _DATA:
            top_class = summary.top_class
    _check_sources(source, records)
    kept = {record: entry for record, entry in records.items() if record not in _DROPPED}
    return _Model(root, kept, version, _read_methods(source, records, top_class))


def _check_head(head: bytes, size: int) -> None:
    if size == 0:
        raise MODEL_REFUSALS.is_not_a_zip(f"the file is empty; {SAVE_AS_TORCHSCRIPT}")
    if head.startswith(LOCAL_ZIP_MAGIC):
        return
    if size < len(LOCAL_ZIP_MAGIC) and LOCAL_ZIP_MAGIC.startswith(head):
        raise MODEL_REFUSALS.is_truncated(f"only {size} bytes of the model are here")
    found = recognise(head, size)
    if found is None:
        raise MODEL_REFUSALS.is_not_a_zip(
            f"the file is not a TorchScript archive, which is a zip; {SAVE_AS_TORCHSCRIPT}"
        )
    reason = Reason.MODEL_IS_CHECKPOINT if found.is_checkpoint else Reason.MODEL_NOT_A_ZIP
    raise InvalidArtifactError(
        reason, f"the file is {found.name}, not a TorchScript archive; {_advice(found.is_checkpoint)}"
    )


def _check_format(names: list[str]) -> None:
    found = recognise_zip(names)
    if found is not None:
        reason = Reason.MODEL_IS_CHECKPOINT if found.is_checkpoint else Reason.MODEL_NOT_TORCHSCRIPT
        raise InvalidArtifactError(
            reason, f"the file is {found.name}, not a TorchScript archive; {_advice(found.is_checkpoint)}"
        )


def _advice(is_checkpoint: bool) -> str:
    if is_checkpoint:
        return (
            f"weights without their code cannot be run: load them into the model in Python, then {SAVE_AS_TORCHSCRIPT}"
        )
    return f"in Python, with the model, {SAVE_AS_TORCHSCRIPT}"


def _below_root(entries: tuple[Entry, ...]) -> tuple[str, dict[str, Entry]]:
    """Returns the one root folder and the entries by their names below it."""
    root = entries[0].name.partition("/")[0] if entries else ""
    records: dict[str, Entry] = {}
    for entry in entries:
        folder, slash, record = entry.name.partition("/")
        if not slash or folder != root:
            raise InvalidArtifactError(
                Reason.MODEL_NOT_TORCHSCRIPT,
                "the zip is not a TorchScript archive, in which everything lies in one folder:"
                f" {shown(entry.name)} does not; {SAVE_AS_TORCHSCRIPT}",
            )
        records[record] = entry
    missing = [name for name in (_DATA, _CONSTANTS) if name not in records]
    if not any(name.startswith("code/") for name in records):
        missing.append("code/")
    if missing:
        raise InvalidArtifactError(
            Reason.MODEL_NOT_TORCHSCRIPT,
            f"the zip is not a TorchScript archive: it has no {', '.join(missing)}; {SAVE_AS_TORCHSCRIPT}",
        )
    return root, records


def _check_records(records: dict[str, Entry]) -> None:
    code_bytes = 0
    for record, entry in records.items():
        is_code = record.startswith("code/") and record.endswith(_CODE_SUFFIXES)
        known = is_code or record.startswith((*_TENSOR_FOLDERS, _EXTRA_FOLDER)) or record in _SMALL_RECORDS
        if not (known or record in _PICKLES or record in _DROPPED):
            raise MODEL_REFUSALS.is_refused(
                f"the archive holds {shown(record)}, which torch.jit.save does not write; pass files of your own to"
                " torch.jit.save as _extra_files"
            )
        if not record.startswith(_EXTRA_FOLDER) and not record.isascii():
            raise MODEL_REFUSALS.is_refused(f"the record name {shown(record)} is not ASCII; rename what it names")
        code_bytes += entry.size_bytes if is_code else 0
        cap = MAX_SOURCE_FILE_BYTES if record.endswith(".py") and is_code else None
        if cap is not None and entry.size_bytes > cap:
            raise MODEL_REFUSALS.is_refused(
                f"the source {shown(record)} has {entry.size_bytes} bytes; at most {cap} are taken: is the net unrolled"
                " by tracing? Then trace it in parts, or script it"
            )
    if code_bytes > MAX_CODE_BYTES:
        raise MODEL_REFUSALS.is_refused(
            f"the archive's code has {code_bytes} bytes; at most {MAX_CODE_BYTES} are taken"
        )


def _read(source: BinaryIO, records: dict[str, Entry], record: str, limit_bytes: int) -> bytes:
    return read_all(source, records[record], MODEL_REFUSALS, limit_bytes)


def _read_version(source: BinaryIO, records: dict[str, Entry]) -> int:
    found = {_read(source, records, name, MAX_SMALL_RECORD_BYTES).strip() for name in _VERSIONS if name in records}
    if len(found) != 1:
        what = "names two versions of its format" if found else "does not name the version of its format"
        raise MODEL_REFUSALS.is_corrupt(f"the archive {what}")
    text = found.pop()
    if not text.isdigit() or len(text) > 9:
        raise MODEL_REFUSALS.is_corrupt("the version of the archive's format is not a number")
    version = int(text)
    if not MIN_VERSION <= version <= MAX_VERSION:
        raise InvalidArtifactError(
            Reason.MODEL_VERSION_UNSUPPORTED,
            f"the archive has format version {version}; versions {MIN_VERSION} to {MAX_VERSION} are taken: load it and"
            " save it again with torch 2.13",
        )
    return version


def _check_byte_order(source: BinaryIO, records: dict[str, Entry]) -> None:
    if _BYTE_ORDER not in records:
        return  # Archives of torch before 2.1 have none; they were written on little-endian machines.
    order = _read(source, records, _BYTE_ORDER, MAX_SMALL_RECORD_BYTES).strip()
    if order != b"little":
        raise MODEL_REFUSALS.is_refused(
            f"the archive's byte order is {shown(order.decode('latin-1'))}; save it on a little-endian machine"
        )


def _check_globals(summary: PickleSummary) -> None:
    for name in sorted(summary.globals):
        if name.startswith(_UNSUPPORTED_GLOBALS):
            raise _unsupported(name.replace(" ", "."))


def _check_sources(source: BinaryIO, records: dict[str, Entry]) -> None:
    for record in records:
        if record.startswith("code/") and record.endswith(".py"):
            data = _read(source, records, record, MAX_SOURCE_FILE_BYTES)
            found = find_unsupported(data, MODEL_REFUSALS, record)
            if found is not None:
                raise _unsupported(found)


def _unsupported(name: str) -> InvalidArtifactError:
    if "quantized" in name or "qtensor" in name or name.startswith("torch.per_"):
        return MODEL_REFUSALS.is_refused(
            f"the model is quantized ({shown(name)}); quantized weights are not pruned: send the floating-point model"
            " and quantize the result"
        )
    return MODEL_REFUSALS.is_refused(
        f"the model holds an object of the custom class {shown(name)}, which only the program that made it knows; save"
        " a model of torch's own modules"
    )


def _check_storages(summary: PickleSummary, folder: str, records: dict[str, Entry]) -> None:
    """Declared sizes are the records' sizes: torch does not compare them, and would read and write beyond a record."""
    for storage in summary.storages:
        entry = records.get(f"{folder}/{storage.key}")
        if entry is None:
            raise MODEL_REFUSALS.is_corrupt(f"the tensor record {shown(f'{folder}/{storage.key}')} is missing")
        if entry.size_bytes != storage.size_bytes:
            raise MODEL_REFUSALS.is_corrupt(
                f"the tensor record {shown(f'{folder}/{storage.key}')} has {entry.size_bytes} bytes, and the model"
                f" declares {storage.size_bytes}"
            )


def _read_methods(source: BinaryIO, records: dict[str, Entry], top_class: str | None) -> tuple[str, ...]:
    if top_class is None or not is_script_class(top_class):
        raise InvalidArtifactError(
            Reason.MODEL_NOT_TORCHSCRIPT, f"the archive does not hold a TorchScript module; {SAVE_AS_TORCHSCRIPT}"
        )
    record = source_record(top_class)
    name = top_class.rpartition(".")[2]
    methods = None
    if record in records:
        data = _read(source, records, record, MAX_SOURCE_FILE_BYTES)
        methods = read_methods(data, name, MODEL_REFUSALS, record)
    if methods is None:
        raise MODEL_REFUSALS.is_corrupt(f"the source of the class {shown(name)} is missing")
    if "forward" not in methods:
        others = f"only {', '.join(shown(method) for method in methods[:10])}" if methods else "nor any other method"
        raise InvalidArtifactError(
            Reason.MODEL_NO_FORWARD,
            f"the model has no method 'forward', {others}; give the module a forward that takes the inputs and returns"
            " the outputs, and save it again",
        )
    return methods
