"""The records of a TorchScript archive: which there may be, where they lie, and what the small ones say."""

from __future__ import annotations

from typing import BinaryIO

from pruning_server.archive.foreign import LOCAL_ZIP_MAGIC, SAVE_AS_TORCHSCRIPT, recognise, recognise_zip
from pruning_server.archive.limits import (
    MAX_CODE_BYTES,
    MAX_SMALL_RECORD_BYTES,
    MAX_SOURCE_BYTES,
    MAX_SOURCE_FILE_BYTES,
)
from pruning_server.archive.refusals import MODEL_REFUSALS, shown
from pruning_server.archive.zip_directory import Entry
from pruning_server.archive.zip_records import read_all
from pruning_server.errors import InvalidArtifactError, Reason

MIN_VERSION = 3
MAX_VERSION = 10

DATA = "data.pkl"
CONSTANTS = "constants.pkl"
TRACED_INPUTS = "traced_inputs.pkl"
PICKLES = (DATA, CONSTANTS, TRACED_INPUTS)
TENSOR_FOLDERS = ("data/", "constants/", "traced_inputs/")
EXTRA_FOLDER = "extra/"
# The bytecode of the lite interpreter: a second copy of the code, which torch.jit.load ignores and pruning would falsify.
DROPPED = frozenset({"bytecode.pkl", "mobile_debug_handles.pkl"})

_CODE_FOLDER = "code/"
_CODE_SUFFIXES = (".py", ".py.debug_pkl")
_BYTE_ORDER = "byteorder"
_VERSIONS = (".data/version", "version")
_SMALL = frozenset({*_VERSIONS, _BYTE_ORDER, ".data/serialization_id", ".format_version", ".storage_alignment"})


def is_source(record: str) -> bool:
    """Whether the record holds code."""
    return record.startswith(_CODE_FOLDER) and record.endswith(".py")


def check_head(head: bytes, size: int) -> None:
    """Refuses a file that does not begin as a zip does, and says what it is instead."""
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


def check_format(names: list[str]) -> None:
    """Refuses a zip that is of another format."""
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


def below_root(entries: tuple[Entry, ...]) -> tuple[str, dict[str, Entry]]:
    """Returns the one root folder and the entries by their names below it; refuses a zip without what every model has."""
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
    missing = [name for name in (DATA, CONSTANTS) if name not in records]
    if not any(is_source(name) for name in records):
        missing.append("code/")
    if missing:
        raise InvalidArtifactError(
            Reason.MODEL_NOT_TORCHSCRIPT,
            f"the zip is not a TorchScript archive: it has no {', '.join(missing)}; {SAVE_AS_TORCHSCRIPT}",
        )
    return root, records


def check_records(records: dict[str, Entry]) -> None:
    """Refuses records that TorchScript does not have, and code beyond the caps."""
    code_bytes = source_bytes = 0
    for record, entry in records.items():
        is_code = record.startswith(_CODE_FOLDER) and record.endswith(_CODE_SUFFIXES)
        known = is_code or record.startswith((*TENSOR_FOLDERS, EXTRA_FOLDER)) or record in _SMALL
        if not (known or record in PICKLES or record in DROPPED):
            raise MODEL_REFUSALS.is_refused(
                f"the archive holds {shown(record)}, which torch.jit.save does not write; pass files of your own to"
                " torch.jit.save as _extra_files"
            )
        if not record.startswith(EXTRA_FOLDER) and not record.isascii():
            raise MODEL_REFUSALS.is_refused(f"the record name {shown(record)} is not ASCII; rename what it names")
        code_bytes += entry.size_bytes if is_code else 0
        source_bytes += entry.size_bytes if is_source(record) else 0
        cap = MAX_SOURCE_FILE_BYTES if record.endswith(".py") and is_code else None
        if cap is not None and entry.size_bytes > cap:
            raise MODEL_REFUSALS.is_refused(
                f"the source {shown(record)} has {entry.size_bytes} bytes; at most {cap} are taken: is the net unrolled"
                " by tracing? Then trace it in parts, or script it"
            )
    if source_bytes > MAX_SOURCE_BYTES:
        raise MODEL_REFUSALS.is_refused(
            f"the archive's source has {source_bytes} bytes; at most {MAX_SOURCE_BYTES} are taken: is the net unrolled by"
            " tracing? Then trace it in parts, or script it"
        )
    if code_bytes > MAX_CODE_BYTES:
        raise MODEL_REFUSALS.is_refused(
            f"the archive's code has {code_bytes} bytes; at most {MAX_CODE_BYTES} are taken"
        )


def read_record(source: BinaryIO, records: dict[str, Entry], record: str, limit_bytes: int) -> bytes:
    """Returns the content of a record of at most `limit_bytes`."""
    return read_all(source, records[record], MODEL_REFUSALS, limit_bytes)


def read_version(source: BinaryIO, records: dict[str, Entry]) -> int:
    """Returns the version of the archive's format, from 3 to 10."""
    found = {
        read_record(source, records, name, MAX_SMALL_RECORD_BYTES).strip() for name in _VERSIONS if name in records
    }
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


def check_byte_order(source: BinaryIO, records: dict[str, Entry]) -> None:
    """Refuses archives of big-endian machines, whose tensors torch would read wrongly."""
    if _BYTE_ORDER not in records:
        return  # Archives of torch before 2.1 have none; they were written on little-endian machines.
    order = read_record(source, records, _BYTE_ORDER, MAX_SMALL_RECORD_BYTES).strip()
    if order != b"little":
        raise MODEL_REFUSALS.is_refused(
            f"the archive's byte order is {shown(order.decode('latin-1'))}; save it on a little-endian machine"
        )
