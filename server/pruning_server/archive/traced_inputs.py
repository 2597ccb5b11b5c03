"""The example inputs that a traced archive remembers: shapes and dtypes, read without unpickling; torch writes no values."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pruning_server.archive.limits import DEFAULT_LIMITS, MAX_PICKLE_BYTES
from pruning_server.archive.model_records import TRACED_INPUTS, below_root, read_record
from pruning_server.archive.refusals import MODEL_REFUSALS
from pruning_server.archive.zip_directory import read_directory
from pruning_server.spec.inspection import TensorSpec, why_unusable

ExampleValue = TensorSpec | int | float | bool | str | None

_DTYPES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
_TENSOR_FUNCTION = "torch._utils _rebuild_tensor_v2"
_TAG_FUNCTION = "torch.jit._pickle restore_type_tag"


def read_traced_inputs(source: BinaryIO) -> tuple[ExampleValue, ...] | None:
    """Returns what `forward` was traced with, argument by argument; None where the archive does not say it in this form.

    Args:
        source: an archive that the gate has accepted.

    Raises:
        InvalidArtifactError: the record is damaged.
    """
    _, records = below_root(read_directory(source, MODEL_REFUSALS, DEFAULT_LIMITS))
    if TRACED_INPUTS not in records:
        return None
    data = read_record(source, records, TRACED_INPUTS, MAX_PICKLE_BYTES)
    try:
        top = _Machine().run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return None  # a form of this record that is not known is as good as none
    found = top.get("forward") if isinstance(top, dict) else None
    if not isinstance(found, list):
        return None
    values: list[Any] = [_example(value) for value in found]
    return None if any(value is _UNKNOWN for value in values) else tuple(values)


@dataclass(frozen=True)
class _Global:
    name: str


class _Unknown:
    """A value that cannot be given as an input."""


_UNKNOWN = _Unknown()
_MARK = _Unknown()


@dataclass
class _Machine:
    """The stack and the memo; a damaged pickle raises one of the errors that `read_traced_inputs` expects."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, data: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            _STEPS[opcode.name](self, argument)
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def tuple_of(self, values: list[Any]) -> None:
        self.stack.append(tuple(values))

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items are added to what is no list")  # noqa: TRY004 - one kind of error for all damage
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("items are set in what is no dict")  # noqa: TRY004 - as above
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def remember(self, index: Any) -> None:
        self.memo[index] = self.stack[-1]

    def storage(self) -> None:
        """The dtype of ('storage', type, key, location, number of elements)."""
        _, kind, _, _, _ = self.stack.pop()
        self.stack.append(_DTYPES.get(kind.name, _UNKNOWN) if isinstance(kind, _Global) else _UNKNOWN)

    def reduce(self) -> None:
        function, arguments = self.last(2)
        self.stack.append(_call(function, arguments))


def _call(function: object, arguments: Sequence[Any]) -> object:
    """The only two calls that mean something here: a typed container, and a tensor."""
    if not isinstance(function, _Global):
        return _UNKNOWN
    if function.name == _TAG_FUNCTION:
        return arguments[0]
    if function.name == _TENSOR_FUNCTION:
        dtype, _, shape = arguments[:3]
        if isinstance(dtype, str) and isinstance(shape, tuple) and all(type(size) is int for size in shape):
            return TensorSpec(shape=shape, dtype=dtype)
    return _UNKNOWN


def _example(value: object) -> object:
    if isinstance(value, TensorSpec):
        return _UNKNOWN if why_unusable(value) else value
    return value if value is None or isinstance(value, bool | int | float | str) else _UNKNOWN


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


_PUSHED = ("BINFLOAT", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINUNICODE8")
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED, _push),
    "PROTO": lambda _machine, _: None,
    "MARK": lambda machine, _: _push(machine, _MARK),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "GLOBAL": lambda machine, name: _push(machine, _Global(str(name))),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "TUPLE": lambda machine, _: machine.tuple_of(machine.to_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.last(3)),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.to_mark()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "BINGET": lambda machine, index: _push(machine, machine.memo[index]),
    "LONG_BINGET": lambda machine, index: _push(machine, machine.memo[index]),
    "BINPERSID": lambda machine, _: machine.storage(),
    "REDUCE": lambda machine, _: machine.reduce(),
}
