"""Recognises files that are something else than what was asked for, so that the refusal can say what to do with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

HEAD_BYTES = 512

LEGACY_CHECKPOINT_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
NPY_MAGIC = b"\x93NUMPY"
LOCAL_ZIP_MAGIC = b"PK\x03\x04"
EMPTY_ZIP_MAGIC = b"PK\x05\x06"
SAVE_AS_TORCHSCRIPT = "save it with torch.jit.script(model).save(path), or torch.jit.trace(model, example).save(path)"


@dataclass(frozen=True)
class Format:
    """A file format: how to call it, and whether it holds weights of a PyTorch model without its code."""

    name: str
    is_checkpoint: bool = False


# (offset, magic bytes, format)
_MAGICS: tuple[tuple[int, bytes, Format], ...] = (
    (0, LEGACY_CHECKPOINT_MAGIC, Format("a checkpoint of torch.save in its old format", is_checkpoint=True)),
    (0, b"\x89HDF\r\n\x1a\n", Format("an HDF5 file, as Keras and h5py write it")),
    (0, NPY_MAGIC, Format("a single numpy array (.npy)")),
    (0, b"GGUF", Format("a GGUF file")),
    (4, b"TFL3", Format("a TensorFlow Lite model")),
    (4, b"PTMF", Format("a PyTorch Mobile model in flatbuffer format")),
    (4, b"ET12", Format("an ExecuTorch program")),
    (0, b"PAR1", Format("a Parquet file")),
    (0, b"ARROW1", Format("an Arrow file")),
    (0, b"\x1f\x8b", Format("a gzip file")),
    (0, b"\xfd7zXZ\x00", Format("an xz file")),
    (0, b"BZh", Format("a bzip2 file")),
    (0, b"\x28\xb5\x2f\xfd", Format("a Zstandard file")),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive")),
    (0, b"Rar!\x1a\x07", Format("a RAR archive")),
    (257, b"ustar", Format("a tar archive")),
    (0, b"\x89PNG\r\n\x1a\n", Format("a PNG image")),
    (0, b"\xff\xd8\xff", Format("a JPEG image")),
    (0, b"%PDF", Format("a PDF document")),
    (0, b"SQLite format 3\x00", Format("an SQLite database")),
    (0, b"\x7fELF", Format("a compiled program or library")),
    (0, b"version https://git-lfs", Format("a Git LFS pointer, not the file itself (fetch it with `git lfs pull`)")),
    (0, LOCAL_ZIP_MAGIC, Format("a zip archive")),
    (0, EMPTY_ZIP_MAGIC, Format("an empty zip archive")),
)

# (names that must all be there, format); the names stand below the root folder or at the top.
_ZIP_MEMBERS: tuple[tuple[tuple[str, ...], Format], ...] = (
    (("models/model.json", "archive_format"), Format("an exported program of torch.export (.pt2)")),
    (("serialized_exported_program.json",), Format("an exported program of torch.export (.pt2)")),
    (("archive_format", "archive_version"), Format("an exported program of torch.export (.pt2)")),
    (("metadata.json", "model.weights.h5"), Format("a Keras model (.keras)")),
    ((".data/extern_modules",), Format("an archive of torch.package")),
    (("MAR-INF/MANIFEST.json",), Format("a TorchServe archive (.mar); the TorchScript file is inside it")),
    (
        ("model.json", "version"),
        Format("a TorchScript file of a torch older than 1.4; load and save it with a newer one"),
    ),
    (("[Content_Types].xml",), Format("an office document")),
)
_CHECKPOINT_RECORD = "data.pkl"


def recognise(head: bytes, size_bytes: int) -> Format | None:
    """Returns the format of a file by its first bytes, None if it is unknown."""
    for offset, magic, kind in _MAGICS:
        if head.startswith(magic, offset):
            return kind
    if is_safetensors(head, size_bytes):
        return Format("a safetensors file", is_checkpoint=True)
    if _is_pickle(head):
        return Format("a Python pickle", is_checkpoint=True)
    if _is_onnx(head):
        return Format("an ONNX model")
    return _text(head)


def recognise_zip(names: Collection[str]) -> Format | None:
    """Returns the format of a zip by its entries' names, None if it is unknown or TorchScript."""
    if names and all(name.endswith(".npy") for name in names):
        return Format("a numpy archive (.npz)")
    below = {name.partition("/")[2] for name in names} | set(names)
    for wanted, kind in _ZIP_MEMBERS:
        if all(name in below for name in wanted):
            return kind
    has_code = any(name.startswith("code/") for name in below)
    if _CHECKPOINT_RECORD in below and not has_code:
        return Format("a checkpoint of torch.save (a state_dict or a pickled module)", is_checkpoint=True)
    return None


def is_safetensors(head: bytes, size_bytes: int) -> bool:
    """Whether a file begins as safetensors does: the length of a JSON header that fits into it, and its brace."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size_bytes - 8


def _is_pickle(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_onnx(head: bytes) -> bool:
    """A protobuf of field 1 (the version, a small number), followed by the producer's name or the graph."""
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 32 and head[2] in {0x12, 0x1A, 0x3A, 0x42}


def _text(head: bytes) -> Format | None:
    if not head:
        return None
    try:
        # The last character may be cut in two.
        text = head.decode("utf-8") if len(head) < HEAD_BYTES else head[:-4].decode("utf-8", errors="strict")
    except UnicodeDecodeError:
        return None
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html")):
        return Format("a web page, perhaps an error page that was saved under the file's name")
    if not all(c.isprintable() or c.isspace() for c in text):
        return None
    return Format("a JSON text" if start.startswith(("{", "[")) else "a text file")
