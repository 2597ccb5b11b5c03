"""Mutations that know what they mutate: zip records, pickle opcodes, source, headers of arrays, protobuf requests."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from helpers.archives import entries, npz, zipped

NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1]
WORDS = [
    "torch.save", "torch.relu", "torch", "ops", "ops.prim.PythonOp", "__torch__", "__torch__.torch.classes.c10d.Store",
    "getattr", "print", "fork", "x", "self", "None", "-1", "9223372036854775807", "1e999", "inf", "[]", "()", "{}", "*",
    "CONSTANTS.c0", "CONSTANTS.c99", "uninitialized", "annotate", "Tensor", "List[Tensor]", "Optional[int]", "return",
    "while", "for", "in", "with", "if", "=", ":", "(", ")", "[", "]", ",", "\n", "  ", '"', "def", "class", "@", "#",
    "# type: int", "\\", "torch.zeros([4])", "torch.resize_", "x.resize_", "__setstate__", "__getstate__", "__new__",
]  # fmt: skip
OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]
GLOBALS = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nDoubleStorage\n", b"ctorch._utils\n_rebuild_qtensor\n"]


def flipped(chance: Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, or put in."""
    bad = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        if not bad:
            break
        at = chance.randrange(len(bad))
        match chance.randrange(5):
            case 0:
                del bad[at : at + chance.choice([1, 4, 64])]
            case 1:
                bad[at:at] = chance.randbytes(chance.choice([1, 4, 64]))
            case 2:
                bad[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
            case _:
                bad[at] ^= 1 << chance.randrange(8)
    return bytes(bad)


def opcodes_mutated(chance: Random, data: bytes) -> bytes:
    """A pickle with opcodes taken out, doubled, swapped, replaced, or given other arguments."""
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except (ValueError, IndexError, KeyError):
        return flipped(chance, data)
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(pieces))
        match chance.randrange(7):
            case 0:
                del pieces[at]
            case 1:
                pieces[at:at] = [pieces[at]] * chance.choice([1, 2, 1000])
            case 2:
                pieces[at] = pieces[chance.randrange(len(pieces))]
            case 3:
                pieces[at] = pieces[at][:1] + flipped(chance, pieces[at][1:])
            case 4:
                pieces[at] = chance.choice(OPCODES) + pieces[at][1:]
            case 5:
                pieces[at] = chance.choice(GLOBALS)
            case _:
                pieces[at] = b"J" + struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
        if not pieces:
            break
    return b"".join(pieces)


def source_mutated(chance: Random, data: bytes) -> bytes:
    """Source with words replaced, taken out, put in, swapped, and lines doubled, moved or nested."""
    words = re.findall(r"\w+(?:\.\w+)*|\s+|.", data.decode("latin-1"), re.DOTALL)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(words))
        match chance.randrange(6):
            case 0:
                words[at] = chance.choice(WORDS)
            case 1:
                words[at:at] = [chance.choice(WORDS)]
            case 2:
                del words[at]
            case 3:
                other = chance.randrange(len(words))
                words[at], words[other] = words[other], words[at]
            case 4:
                words[at:at] = words[at : at + chance.choice([3, 30])]
            case _:
                depth = chance.choice([3, 300, 30_000])
                words[at] = chance.choice("([-~") * depth + words[at] + chance.choice([")", "]", ""]) * depth
        if not words:
            break
    return "".join(words).encode("latin-1", "replace")


def records_mutated(chance: Random, content: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """Entries taken out, doubled, renamed, exchanged, shortened."""
    pairs = list(content.items())
    at = chance.randrange(len(pairs))
    name, data = pairs[at]
    match chance.randrange(7):
        case 0:
            del pairs[at]
        case 1:
            pairs.append((chance.choice([name, name.upper(), name.swapcase()]), data))
        case 2:
            pairs[at] = (
                chance.choice([name.upper(), "../" + name, "/" + name, name + "x", name.replace("/", "//")]),
                data,
            )
        case 3:
            pairs[at] = (name, pairs[chance.randrange(len(pairs))][1])
        case 4:
            pairs[at] = (name, data[: chance.randrange(len(data) + 1)])
        case 5:
            pairs[at] = (name, data * chance.choice([2, 100]))
        case _:
            pairs[at] = (name, str(chance.choice(NUMBERS)).encode())
    return pairs


def headers_mutated(chance: Random, archive: bytes) -> bytes:
    """Fields of the zip's own records set to other numbers."""
    bad = bytearray(archive)
    for _ in range(chance.choice([1, 2])):
        places = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)", bad)]
        if not places:
            break
        field = chance.choice(places) + 4 + chance.randrange(42)
        width = chance.choice([2, 4])
        bad[field : field + width] = (chance.choice(NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(bad)


def mutated_archive(chance: Random, archives: list[bytes]) -> bytes:
    """One of the archives, mutated somewhere; checksums are right but where they are what is mutated."""
    archive = chance.choice(archives)
    kind = chance.choice(["pickle", "pickle", "source", "source", "records", "headers", "bytes"])
    if kind == "bytes":
        return flipped(chance, archive)
    if kind == "headers":
        return headers_mutated(chance, archive)
    content = entries(archive)
    method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    if kind == "records":
        return zipped(records_mutated(chance, content), method)
    suffix, change = (".pkl", opcodes_mutated) if kind == "pickle" else (".py", source_mutated)
    names = [
        name for name, data in content.items() if name.endswith(suffix) and data and not name.endswith("debug_pkl")
    ]
    name = chance.choice(names)
    return zipped(content | {name: change(chance, content[name])}, method)


def _npy_header_mutated(chance: Random, data: bytes) -> bytes:
    length = struct.unpack_from("<H", data, 8)[0]
    header = data[10 : 10 + length].decode("latin-1")
    choices = [
        "'|O'",
        "'<f8'",
        "'<c8'",
        "(-1,)",
        f"({chance.choice(NUMBERS)},)",
        "()",
        "True",
        "None",
        "[('a','<f4')]",
        "(" * 99,
    ]
    header = re.sub(r"'<\w\d'|\([^)]*\)|False", lambda f: chance.choice([f.group(), chance.choice(choices)]), header)
    text = header.encode("latin-1")
    claimed = chance.choice([len(text), len(text), chance.choice(NUMBERS) & 0xFFFF])
    return data[:8] + struct.pack("<H", claimed) + text + data[10 + length :]


def mutated_dataset(chance: Random, arrays: dict[str, Any]) -> bytes:
    """An .npz or a .safetensors file of these arrays, mutated somewhere."""
    if chance.random() < 0.5:
        return _mutated_safetensors(chance, arrays)
    file = npz(compressed=chance.random() < 0.3, **arrays)
    match chance.randrange(4):
        case 0:
            return flipped(chance, file)
        case 1:
            return headers_mutated(chance, file)
        case 2:
            return zipped(records_mutated(chance, entries(file)))
        case _:
            content = entries(file)
            name = chance.choice(list(content))
            change = chance.choice([_npy_header_mutated, flipped])
            return zipped(content | {name: change(chance, content[name])})


def _mutated_safetensors(chance: Random, arrays: dict[str, Any]) -> bytes:
    fields: dict[str, Any] = {}
    payload = io.BytesIO()
    for name, array in arrays.items():
        start = payload.tell()
        payload.write(array.tobytes())
        dtype = {"float32": "F32", "int64": "I64"}[array.dtype.name]
        fields[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, payload.tell()]}
    number: Callable[[], Any] = lambda: chance.choice([*NUMBERS, -1, 1.5, None, "1", [], True])  # noqa: E731
    field = fields[chance.choice(list(fields))]
    match chance.randrange(6):
        case 0:
            field["shape"] = [number() for _ in range(chance.choice([0, 1, 2, 40]))]
        case 1:
            field["data_offsets"] = [number(), number()]
        case 2:
            field[chance.choice(["dtype", "shape", "data_offsets", "more"])] = number()
        case 3:
            fields[chance.choice(["inputs", "x", "__metadata__", "split"])] = dict(field)
        case _:
            pass
    text = json.dumps(fields).encode()
    text = flipped(chance, text) if chance.random() < 0.5 else text
    claimed = chance.choice([len(text), len(text), len(text), chance.choice(NUMBERS)])
    file = struct.pack("<Q", claimed) + text + payload.getvalue()
    return flipped(chance, file) if chance.random() < 0.2 else file


_TEXTS = ["", "x", "../../etc/passwd", "\u0000", "\u202e", "a" * 5000, "file:///etc/passwd", "%s%n", "0" * 64, "-1"]


def mutated_message(chance: Random, message: Message) -> bytes:
    """The message with fields set at random, three deep, as bytes; sometimes those are damaged, too."""
    copy = type(message)()
    copy.CopyFrom(message)
    for _ in range(chance.choice([1, 2, 6])):
        _set_somewhere(chance, copy, 3)
    data = copy.SerializeToString()
    return flipped(chance, data) if chance.random() < 0.3 else data


def _set_somewhere(chance: Random, message: Any, depth: int) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = chance.choice(fields)
    if chance.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _set_message(chance, message, field, depth)
    elif field.is_repeated:
        getattr(message, field.name).extend(_scalar(chance, field) for _ in range(chance.choice([1, 3, 200])))
    else:
        setattr(message, field.name, _scalar(chance, field))


def _set_message(chance: Random, message: Any, field: FieldDescriptor, depth: int) -> None:
    value = getattr(message, field.name)
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return
    if field.is_repeated:
        value = value.add()
    else:
        value.SetInParent()
    if depth:
        for _ in range(chance.choice([1, 3])):
            _set_somewhere(chance, value, depth - 1)


def _scalar(chance: Random, field: FieldDescriptor) -> Any:  # noqa: PLR0911 - one for each type
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return chance.randbytes(chance.choice([0, 1, 32, 4000]))
            return chance.choice(_TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return chance.choice([0.0, -1.0, 0.5, 1.0, 1e308, -1e308, float("inf"), float("nan"), 5e-324])
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice([0, 1, 2, 99, -1])
        case FieldDescriptor.CPPTYPE_INT32:
            return chance.choice([0, 1, -1, (1 << 31) - 1, -(1 << 31)])
        case FieldDescriptor.CPPTYPE_UINT32:
            return chance.choice([0, 1, (1 << 32) - 1])
        case FieldDescriptor.CPPTYPE_UINT64:
            return chance.choice([0, 1, (1 << 64) - 1])
        case _:
            return chance.choice([0, 1, -1, (1 << 63) - 1, -(1 << 63)])
