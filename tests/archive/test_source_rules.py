"""What the source of an archive may be made of: every attack is refused by name, and what torch writes is not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.archives import changed, entries
from pruning_server.archive.limits import MAX_SOURCE_BYTES
from pruning_server.archive.model import check_model
from pruning_server.archive.operators import PRIM_OPERATORS, TORCH_OPERATORS
from pruning_server.archive.source_rules import MAX_DEPTH
from pruning_server.errors import InvalidArtifactError, Reason


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


def archive_of(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    return file.getvalue()


def tampered(change: Callable[[bytes], bytes], module: nn.Module | None = None) -> bytes:
    """The archive with the source of its top-level class changed."""
    archive = archive_of(module or Plain())
    for name, data in entries(archive).items():
        record = name.split("/", 1)[1]
        if record.endswith(".py") and b"def forward" in data and b"torch.relu(" in data:
            made = change(data)
            assert made != data
            return changed(archive, {record: made})
    raise AssertionError("no source to change")


def refusal(archive: bytes) -> InvalidArtifactError:
    with pytest.raises(InvalidArtifactError) as refused:
        check_model(io.BytesIO(archive))
    return refused.value


CALLS = {
    "a file written": ('torch.save(x, "/tmp/x")', "torch.save"),
    "a file mapped": ('torch.from_file("/etc/passwd", False, 8)', "torch.from_file"),
    "storage swapped": ("torch.set_(x, x)", "torch.set_"),
    "storage resized": ("torch.resize_(x, [9])", "torch.resize_"),
    "strides beyond": ("torch.as_strided_(x, [9], [9])", "torch.as_strided_"),
    "a seed": ("torch.manual_seed(1)", "torch.manual_seed"),
    "a python op": ("ops.prim.PythonOp(x)", "ops.prim.PythonOp"),
    "a fork": ("ops.prim.fork(x)", "ops.prim.fork"),
    "a profiler": ('ops.profiler._record_function_enter("x")', "profiler"),
    "another machine": ("ops.c10d.allreduce_(x)", "c10d"),
    "another library": ("ops.torchvision.nms(x, x, 0.5)", "torchvision"),
    "unsafe indices": ("torch._sparse_coo_tensor_unsafe(x, x, [1])", "_sparse_coo_tensor_unsafe"),
    "unsafe lengths": ('torch.segment_reduce(x, "sum")', "segment_reduce"),
    "a method on a tensor": ("x.set_(x)", "set_"),
    "an aliased method": ("(x).resize_as_(x)", "resize_as_"),
    "python": ('__import__("os")', "__import__"),
    "evaluation": ('eval("1")', "eval"),
    "a lambda": ("(lambda y: y)(x)", "Lambda"),
    "a comprehension": ("torch.cat([y for y in [x]])", "ListComp"),
    "an attribute of torch": ("torch.add(x, torch.save)", "torch.save"),
    "the namespace itself": ('getattr(torch, "save")(x)', "torch"),
    "an f-string": ('f"{x}"', "JoinedStr"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_on_the_list_is_refused_by_name(name: str) -> None:
    call, word = CALLS[name]
    refused = refusal(tampered(lambda source: source.replace(b"torch.relu(", f"torch.relu({call}, ".encode(), 1)))
    assert refused.reason is Reason.MODEL_REFUSED
    assert word in refused.message
    assert "line" in refused.message


STATEMENTS = {
    "an alias": "_9 = torch.save",
    "another alias": "torch = x",
    "an import": "import os",
    "a global": "global x",
    "a deletion": "del x",
    "a handler": "try:\n      pass\n    except:\n      pass",
    "a class inside": "async def f(): pass",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_that_torch_does_not_write_are_refused(name: str) -> None:
    def put(source: bytes) -> bytes:
        start = source.index(b"\n", source.index(b"def forward"))
        start = source.index(b"Tensor:\n", start - 1) + len(b"Tensor:\n")
        return source[:start] + b"    " + STATEMENTS[name].encode() + b"\n" + source[start:]

    assert refusal(tampered(put)).reason is Reason.MODEL_REFUSED


@pytest.mark.parametrize("name", ["__setstate__", "__getstate__"])
def test_what_torch_would_run_while_loading_is_refused(name: str) -> None:
    refused = refusal(tampered(lambda source: source.replace(b"def forward", f"def {name}".encode(), 1)))
    assert refused.reason is Reason.MODEL_REFUSED
    assert name in refused.message


@pytest.mark.parametrize(
    "expression",
    ["(" * 150 + "x" + ")" * 150, "-" * (MAX_DEPTH + 10) + "1", "x" + ".a" * (MAX_DEPTH + 10), "[" * 190 + "]" * 190],
)
def test_deep_nesting_ends_no_process(expression: str) -> None:
    deep = tampered(lambda source: source.replace(b"torch.relu(", b"torch.relu(" + expression.encode() + b",", 1))
    if expression.startswith("("):
        check_model(io.BytesIO(deep))  # parentheses alone nest nothing
        return
    if not expression.startswith("["):
        assert "deep" in refusal(deep).message


@pytest.mark.parametrize("byte", [b"\xff", b"\x00", b"\x0c", b"\t", b"\r", "é".encode()])
def test_bytes_that_readers_see_differently_are_refused(byte: bytes) -> None:
    assert refusal(tampered(lambda source: source + byte)).reason is Reason.MODEL_CORRUPT


def test_all_source_together_is_capped() -> None:
    archive = archive_of(Plain())
    filler = b"x = 1\n" * (MAX_SOURCE_BYTES // 12)
    record = "code/__torch__/{}.py"
    many = changed(archive, {record.format(name): filler for name in ("a", "b", "c")})
    assert str(MAX_SOURCE_BYTES) in refusal(many).message


class Everything(nn.Module):
    """Statements and values of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.convs = nn.ModuleList([nn.Conv1d(4, 4, 1) for _ in range(2)])
        self.ops = nn.ModuleDict({"save": nn.Linear(4, 4)})
        self.names: dict[str, int] = {"torch": 1, "ops.prim.PythonOp": 2}

    def forward(self, x: torch.Tensor, torch_: float = 1.0) -> dict[str, torch.Tensor]:
        save = self.ops["save"](x)
        total = torch.zeros_like(x)
        for conv in self.convs:
            total = total + conv(x.transpose(1, 2)).transpose(1, 2)
        count = 0
        while count < 2:
            count += 1
            if count == 1:
                continue
        with torch.no_grad():
            total = total * torch_
        if float(total.sum()) > 1e9:
            raise ValueError("torch.save is a word here: __setstate__, " + str(self.names))
        words = [f"{name}" for name in self.names]
        assert len(words) == 2
        attended, _ = self.attention(save, save, save)
        hidden, (h, _) = self.lstm(attended)
        picked: list[torch.Tensor] = [hidden[:, -1], h[0]]
        return {"out": self.encoder(total), "last": torch.stack(picked)}


def test_what_torch_writes_passes_and_words_in_strings_are_no_operators() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = archive_of(Everything().eval())
    assert "forward" in check_model(io.BytesIO(archive)).methods


def test_every_operator_on_the_list_exists() -> None:
    known: dict[str, set[str]] = {"aten": set(), "prim": set()}
    for schema in torch._C._jit_get_all_schemas():
        namespace, name = schema.name.split("::", 1)
        known.setdefault(namespace, set()).add(name)
    assert known["aten"] >= TORCH_OPERATORS
    assert known["prim"] >= PRIM_OPERATORS
