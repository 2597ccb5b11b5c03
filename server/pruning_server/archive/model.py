"""Checks a TorchScript archive and writes it anew, without running or unpickling any of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from pruning_server.archive import source_rules
from pruning_server.archive.foreign import HEAD_BYTES, SAVE_AS_TORCHSCRIPT
from pruning_server.archive.limits import DEFAULT_LIMITS, MAX_PICKLE_BYTES, MAX_SOURCE_FILE_BYTES, ZipLimits
from pruning_server.archive.model_records import (
    DATA,
    DROPPED,
    EXTRA_FOLDER,
    PICKLES,
    TENSOR_FOLDERS,
    TRACED_INPUTS,
    below_root,
    check_byte_order,
    check_format,
    check_head,
    check_records,
    is_source,
    read_record,
    read_version,
)
from pruning_server.archive.pickle_reader import PickleSummary, read_pickle
from pruning_server.archive.refusals import MODEL_REFUSALS, shown
from pruning_server.archive.source_reader import find_unsupported, is_script_class, read_methods, source_record
from pruning_server.archive.zip_directory import Entry, read_directory
from pruning_server.archive.zip_format import STORED
from pruning_server.archive.zip_records import stream, stream_blocks, verify
from pruning_server.archive.zip_writer import ZipWriter
from pruning_server.errors import InvalidArtifactError, Reason
from pruning_server.spec.artifacts import ModelSummary

# A record is deflated only where that saves at least a tenth: reading it back costs time and memory.
_WORTHWHILE_PERCENT = 90

# What torch's reader knows besides the archive's own classes and torch's types of storage.
_GLOBALS = frozenset(
    [
        "builtins complex",
        "collections OrderedDict",
        "torch device",
        "torch._utils _rebuild_sparse_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch.jit._pickle build_boollist",
        "torch.jit._pickle build_doublelist",
        "torch.jit._pickle build_intlist",
        "torch.jit._pickle build_tensor_from_id",
        "torch.jit._pickle build_tensorlist",
        "torch.jit._pickle restore_type_tag",
    ]
)
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
        tensors = (entry for name, entry in self.records.items() if name.startswith(TENSOR_FOLDERS))
        code = (entry for name, entry in self.records.items() if is_source(name))
        return ModelSummary(
            format_version=self.version,
            root=self.root,
            methods=self.methods,
            tensor_bytes=sum(entry.size_bytes for entry in tensors),
            code_bytes=sum(entry.size_bytes for entry in code),
            size_bytes=size_bytes,
            extra_files=tuple(n.removeprefix(EXTRA_FOLDER) for n in self.records if n.startswith(EXTRA_FOLDER)),
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
        if compress and entry.method == STORED and record.startswith(TENSOR_FOLDERS):
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
    check_head(source.read(HEAD_BYTES), size)
    entries = read_directory(source, MODEL_REFUSALS, limits)
    check_format([entry.name for entry in entries])
    root, records = below_root(entries)
    check_records(records)
    version = read_version(source, records)
    check_byte_order(source, records)
    top_class = None
    for record in (name for name in PICKLES if name in records):
        summary = read_pickle(read_record(source, records, record, MAX_PICKLE_BYTES), MODEL_REFUSALS, record)
        _check_globals(summary)
        if record != TRACED_INPUTS:  # Its tensors are never read; torch writes them empty.
            _check_storages(summary, record.removesuffix(".pkl"), records)
        if record == DATA:
            top_class = summary.top_class
    sources = _check_sources(source, records)
    kept = {record: entry for record, entry in records.items() if record not in DROPPED}
    return _Model(root, kept, version, _read_methods(sources, top_class))


def _check_globals(summary: PickleSummary) -> None:
    for name in sorted(summary.globals):
        if name.startswith(_UNSUPPORTED_GLOBALS):
            raise _unsupported(name.replace(" ", "."))
        module = name.partition(" ")[0]
        # Types of storages that are not known are refused by their size, which is not known either.
        is_storage = module == "torch" and name.endswith("Storage")
        if name not in _GLOBALS and not is_storage and module.partition(".")[0] != "__torch__":
            raise MODEL_REFUSALS.is_refused(
                f"a pickle of the archive names {shown(name.replace(' ', '.'))}, which TorchScript does not write"
            )


def _check_sources(source: BinaryIO, records: dict[str, Entry]) -> dict[str, source_rules.Source]:
    """Parses every file of source, and refuses what the service does not run."""
    parsed = {
        record: source_rules.parse(read_record(source, records, record, MAX_SOURCE_FILE_BYTES), record, MODEL_REFUSALS)
        for record in records
        if is_source(record)
    }
    for one in parsed.values():
        found = find_unsupported(one.tree)
        if found is not None:
            raise _unsupported(found)
    source_rules.check(tuple(parsed.values()), MODEL_REFUSALS)
    return parsed


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
        if storage.size_bytes is None:
            raise MODEL_REFUSALS.is_refused(
                f"the model holds tensors of the type {shown(storage.kind)}, which is not known; convert them to a"
                " floating-point or integer type"
            )
        entry = records.get(f"{folder}/{storage.key}")
        if entry is None:
            raise MODEL_REFUSALS.is_corrupt(f"the tensor record {shown(f'{folder}/{storage.key}')} is missing")
        if entry.size_bytes != storage.size_bytes:
            raise MODEL_REFUSALS.is_corrupt(
                f"the tensor record {shown(f'{folder}/{storage.key}')} has {entry.size_bytes} bytes, and the model"
                f" declares {storage.size_bytes}"
            )


def _read_methods(sources: dict[str, source_rules.Source], top_class: str | None) -> tuple[str, ...]:
    if top_class is None or not is_script_class(top_class):
        raise InvalidArtifactError(
            Reason.MODEL_NOT_TORCHSCRIPT, f"the archive does not hold a TorchScript module; {SAVE_AS_TORCHSCRIPT}"
        )
    record = source_record(top_class)
    name = top_class.rpartition(".")[2]
    methods = read_methods(sources[record].tree, name) if record in sources else None
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
