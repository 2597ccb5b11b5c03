"""Reads TorchScript's pickles without unpickling: opcodes are walked on an abstract stack, and nothing is built or called.

Only the opcodes that TorchScript's own reader knows are taken. What comes out: the class of the top-level object, every
global that is named, and the storages (record key, number of bytes) that tensors are said to have.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field

from pruning_server.archive.refusals import Refusals, shown

# As `torch` names its storages; bytes per element.
STORAGE_BYTES = {
    "torch FloatStorage": 4,
    "torch DoubleStorage": 8,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
    "torch ComplexHalfStorage": 4,
    "torch UInt16Storage": 2,
    "torch UInt32Storage": 4,
    "torch UInt64Storage": 8,
    "torch Float8_e4m3fnStorage": 1,
    "torch Float8_e5m2Storage": 1,
    "torch Float8_e4m3fnuzStorage": 1,
    "torch Float8_e5m2fnuzStorage": 1,
}
_STORAGE_TUPLE_LENGTH = 5
# As many as a tensor may have axes.
_MAX_TUPLE_LENGTH = 64
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_MAX_MEMO = 1 << 22


@dataclass(frozen=True)
class Global:
    """A class or function by its name, `module name`."""

    name: str


@dataclass(frozen=True)
class Instance:
    """An object of a class."""

    of: Global


@dataclass(frozen=True)
class Storage:
    """The bytes of a tensor: the key of its record, its type, and how many bytes its elements take (None: unknown type)."""

    key: str
    kind: str
    size_bytes: int | None


@dataclass(frozen=True)
class PickleSummary:
    """What a pickle names. `top_class`: the qualified name of the top-level object's class, None if it has none."""

    top_class: str | None
    globals: frozenset[str]
    storages: tuple[Storage, ...]


class _Opaque:
    """A value that nothing is asked about: lists, dicts, floats, tensors."""


class _Mark:
    """Where a group of values begins on the stack."""


_OPAQUE = _Opaque()
_MARK = _Mark()


@dataclass
class _Machine:
    """The stack, the memo and what was found. Lists and dicts stay opaque, so the size does not grow with theirs."""

    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    globals: set[str] = field(default_factory=set)
    storages: dict[Storage, None] = field(default_factory=dict)

    def pop(self) -> object:
        """Takes the topmost value."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def result(self) -> object:
        """Takes the one value that must be left at the end."""
        value = self.pop()
        if self.stack:
            raise ValueError("values are left over")
        return value

    def pop_to_mark(self) -> list[object]:
        """Takes everything down to the last mark."""
        values: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values


def read_pickle(data: bytes, refusals: Refusals, record: str) -> PickleSummary:
    """Walks one pickle.

    Args:
        data: the whole pickle.
        refusals: how to refuse.
        record: the name of the record, for messages.

    Raises:
        InvalidArtifactError: it is damaged, or does what no TorchScript pickle does.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            step = _STEPS.get(opcode.name)
            if step is None:
                raise refusals.is_refused(
                    f"{shown(record)} uses the pickle operation {opcode.name}, which TorchScript never writes"
                )
            step(machine, argument)
        top = machine.result()
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise refusals.is_corrupt(f"{shown(record)} is not a whole pickle ({shown(str(error))})") from error
    top_class = top.of.name.replace(" ", ".") if isinstance(top, Instance) else None
    return PickleSummary(top_class, frozenset(machine.globals), tuple(machine.storages))


def _push(value: object) -> Callable[[_Machine, object], None]:
    return lambda machine, _: machine.stack.append(value)


def _push_argument(machine: _Machine, argument: object) -> None:
    machine.stack.append(argument)


def _mark(machine: _Machine, _: object) -> None:
    machine.stack.append(_MARK)


def _global(machine: _Machine, argument: object) -> None:
    machine.globals.add(str(argument))
    machine.stack.append(Global(str(argument)))


def _get(machine: _Machine, argument: object) -> None:
    machine.stack.append(machine.memo[_index(argument)])


def _put(machine: _Machine, argument: object) -> None:
    index = _index(argument)
    if index > _MAX_MEMO or machine.stack[-1] is _MARK:
        raise ValueError("a memo entry is out of place")
    machine.memo[index] = machine.stack[-1]


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise ValueError("a memo entry has no number")  # noqa: TRY004 - one kind of error for all damage
    return argument


def _tuple(machine: _Machine, _: object) -> None:
    values = machine.pop_to_mark()
    # Longer ones are the caller's own; nothing asks for them.
    machine.stack.append(tuple(values) if len(values) <= _MAX_TUPLE_LENGTH else _OPAQUE)


def _tuple_of(length: int) -> Callable[[_Machine, object], None]:
    def step(machine: _Machine, _: object) -> None:
        values = [machine.pop() for _ in range(length)]
        machine.stack.append(tuple(reversed(values)))

    return step


def _drop_to_mark(machine: _Machine, _: object) -> None:
    machine.pop_to_mark()
    _opaque_top(machine)


def _drop(count: int) -> Callable[[_Machine, object], None]:
    def step(machine: _Machine, _: object) -> None:
        for _ in range(count):
            machine.pop()
        _opaque_top(machine)

    return step


def _opaque_top(machine: _Machine) -> None:
    if not isinstance(machine.stack[-1], _Opaque):
        raise ValueError("items are added to what is no list or dict")  # noqa: TRY004 - as above


def _gather(machine: _Machine, _: object) -> None:
    machine.pop_to_mark()
    machine.stack.append(_OPAQUE)


def _build(machine: _Machine, _: object) -> None:
    machine.pop()
    if not isinstance(machine.stack[-1], Instance):
        raise ValueError("a state is given to what is no object")  # noqa: TRY004 - as above


def _new_object(machine: _Machine, _: object) -> None:
    machine.pop()
    kind = machine.pop()
    if not isinstance(kind, Global):
        raise ValueError("an object has no class")  # noqa: TRY004 - as above
    machine.stack.append(Instance(kind))


def _reduce(machine: _Machine, _: object) -> None:
    given, called = machine.pop(), machine.pop()
    if not isinstance(called, Global):
        raise ValueError("a call names no function")  # noqa: TRY004 - as above
    if called.name == _REBUILD_TENSOR:
        _check_view(given)
    machine.stack.append(_OPAQUE)


def _check_view(given: object) -> None:
    """(storage, offset, sizes, strides, ...), in elements: what a tensor shows lies in its storage."""
    if not isinstance(given, tuple) or len(given) < 4 or not isinstance(given[0], Storage):
        raise ValueError("a tensor has no storage, sizes and strides")
    storage, offset, sizes, strides = given[:4]
    if not isinstance(sizes, tuple) or not isinstance(strides, tuple) or len(sizes) != len(strides):
        raise ValueError("the sizes and strides of a tensor do not fit together")
    if any(not isinstance(number, int) or number < 0 for number in (offset, *sizes, *strides)):
        raise ValueError("an offset, size or stride of a tensor is no number, or negative")
    if storage.size_bytes is None:
        return
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * STORAGE_BYTES[storage.kind] > storage.size_bytes:
        raise ValueError("a tensor reaches beyond its storage")


def _storage(machine: _Machine, _: object) -> None:
    """('storage', type, key, location, number of elements)."""
    given = machine.pop()
    if not isinstance(given, tuple) or len(given) != _STORAGE_TUPLE_LENGTH:
        raise ValueError("a storage is not described by five values")
    tag, kind, key, _location, elements = given
    if tag != "storage" or not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(elements, int):
        raise ValueError("a storage is not described by a type, a key and a size")
    element_bytes = STORAGE_BYTES.get(kind.name)
    size_bytes = None if element_bytes is None else elements * element_bytes
    storage = Storage(key, kind.name, size_bytes)
    machine.storages[storage] = None
    machine.stack.append(storage)


_STEPS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": lambda _machine, _argument: None,
    "MARK": _mark,
    "NONE": _push(_OPAQUE),
    "NEWTRUE": _push(_OPAQUE),
    "NEWFALSE": _push(_OPAQUE),
    "BINFLOAT": _push(_OPAQUE),
    "BININT": _push_argument,
    "BININT1": _push_argument,
    "BININT2": _push_argument,
    "LONG1": _push_argument,
    "BINUNICODE": _push_argument,
    "BINUNICODE8": _push_argument,
    "SHORT_BINUNICODE": _push_argument,
    "EMPTY_TUPLE": _push(()),
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_LIST": _push(_OPAQUE),
    "EMPTY_DICT": _push(_OPAQUE),
    "LIST": _gather,
    "DICT": _gather,
    "APPEND": _drop(1),
    "APPENDS": _drop_to_mark,
    "SETITEM": _drop(2),
    "SETITEMS": _drop_to_mark,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "NEWOBJ": _new_object,
    "BUILD": _build,
    "REDUCE": _reduce,
    "BINPERSID": _storage,
}
