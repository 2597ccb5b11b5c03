"""Attacks on the gate, each of which plain torch takes: all are refused, with a reason, and by name where they have one."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from helpers.archives import changed, checked, entries, npz, refusal_of, repacked, saved, zipped
from pruning_server.archive.dataset import check_dataset
from pruning_server.errors import InvalidArtifactError, JobFailureError, Reason
from pruning_server.worker.permitted import require_permitted


class Attacked(nn.Module):
    """What is tampered with: its code, its pickle, its one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight)


@cache
def archive() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return saved(torch.jit.script(Attacked()))


def source_of(data: bytes) -> tuple[str, str]:
    return next((n.split("/", 1)[1], d.decode()) for n, d in entries(data).items() if n.endswith(".py"))


def with_body(body: str) -> bytes:
    """The archive with another body of `forward`, and with what the body defines behind it."""
    good = archive()
    record, source = source_of(good)
    start = source.index("    weight = self.weight")
    name = source.split("self: ", 1)[1].split(",", 1)[0]
    return changed(good, {record: (source[:start] + body.replace("CLASS", name)).encode()})


def refusal(data: bytes) -> InvalidArtifactError:
    refused = refusal_of(lambda: checked(data))
    assert refused is not None, "the gate takes it"
    assert refused.reason.value.startswith("MODEL_")
    return refused


METHOD = "    return x\n  def g(self: CLASS, x: {}) -> Tensor:\n    return torch.ones([1])\n"

# name -> (body of forward, a word of the refusal). Ways to an operator that is not on the list, and its own name.
ROUND = {
    "a getattr": ('    return getattr(x, "resize_")([3])\n', "no name"),
    "an alias of a method": ("    f = x.resize_\n    return f([3])\n", "function f"),
    "the name of a built-in": ("    len = x.resize_\n    return len([3])\n", "function len"),
    "a later name": ("    print(x)\n    print = x\n    return x\n", "print"),
    "an argument elsewhere": (METHOD.format("Tensor, fork: int") + "  def h(self: CLASS) -> int:\n    fork(1)\n", "fork"),
    "a function's name, taken again": (
        "    f = __torch__.g\n    f = x.resize_\n    return f([3])\ndef g(x: int) -> int:\n  return x\n",
        "",
    ),
    "unpacking": ("    f, g = x.resize_, x\n    return f([3])\n", "function f"),
    "a loop": ("    for f in [x.resize_]:\n      x = f([3])\n    return x\n", "function f"),
    "a choice": ("    return (x.resize_ if True else x.relu)([3])\n", "no name"),
    "an operand": ("    return (x.resize_ or x.relu)([3])\n", "no name"),
    "an item": ('    return {"a": x.resize_}["a"]([3])\n', "no name"),
    "a function inside": ("    def resize_(y: Tensor) -> Tensor:\n      return y\n    return x.resize_([3])\n", "inside"),
    "a namespace": ("    c = __torch__\n    return x\n", "__torch__"),
    "the namespace of custom classes": ("    c = __torch__.torch.classes\n    return x\n", "__torch__.torch.classes"),
    "a custom class": ("    return __torch__.torch.classes.c10d.Store.__new__(x)\n", "custom class"),
    "a class that is not there": ("    return __torch__.os.g(x)\n  def g(self: CLASS) -> int:\n    return 1\n", "os.g"),
    "a default": (METHOD.format("int=torch.save"), "torch.save"),
    "a default that calls": (METHOD.format('Tensor=torch.from_file("/etc/passwd")'), "torch.from_file"),
    "a type": (METHOD.format("torch.save"), "torch.save"),
    "a type that calls": (METHOD.format("torch.save(x)"), "torch.save"),
    "a type in a comment": ("    y = x # type: __torch__.torch.classes.c10d.Store\n    return y\n", "comment"),
    "an attribute of the class": ('    return x\n  z : Final[Tensor] = torch.from_file("/etc/passwd")\n', "torch.from_file"),
    "a decorator": ("    return x\n  @torch.save\n  def g(self: CLASS) -> int:\n    return 1\n", "torch.save"),
    "a with": ('    with torch.save(x, "/tmp/x"):\n      pass\n    return x\n', "torch.save"),
    "a star": ("    return torch.cat(*[torch.save])\n", "torch.save"),
    "a keyword": ("    return torch.add(x, other=torch.save)\n", "torch.save"),
    "a keyword's name": ("    return torch.add(x, torch=x)\n", "torch"),
    "a slice": ("    return x[torch.save:]\n", "torch.save"),
    "a constant": ("    return CONSTANTS.c0.resize_([3])\n", "resize_"),
    "a target": ("    torch.relu = x\n    return x\n", "torch.relu"),
    "an increment": ("    torch += x\n    return x\n", "torch"),
    "torch.ops": ("    return torch.ops.aten.resize_(x, [3])\n", "torch.ops.aten.resize_"),
    "saving": ('    torch.save(x, "/tmp/x")\n    return x\n', "torch.save"),
    "saving by ops": ('    ops.aten.save(x, "/tmp/x")\n    return x\n', "ops.aten.save"),
    "saving by another name": ('    _0 = torch.save\n    _1 = _0(x, "/tmp/x")\n    return x\n', "function _0"),
    "saving by getattr": ('    _0 = getattr(torch, "save")\n    return x\n', "torch"),
    "mapping a file": ('    return torch.from_file("/etc/passwd", True, 9)\n', "torch.from_file"),
    "printing by ops": ('    ops.aten._print("x")\n    return x\n', "_print"),
    "a swapped storage": ("    return torch.set_(x, x)\n", "torch.set_"),
    "a seed": ("    torch.manual_seed(1)\n    return x\n", "torch.manual_seed"),
    "a Python operator": ("    return ops.prim.PythonOp(x)\n", "PythonOp"),
    "a thread": ("    return fork(x)\n", "fork"),
    "another machine": ("    return ops.c10d.allreduce_(x)\n", "c10d"),
    "shared memory": ("    return ops.symm_mem.one_shot_all_reduce(x)\n", "symm_mem"),
    "a profiler": ('    return ops.profiler._record_function_enter("x")\n', "profiler"),
    "a test operator": ("    return ops._test.leaky_relu(x)\n", "_test"),
    "a debugger": ('    return ops.debugprims.load_tensor("x")\n', "debugprims"),
    "a resized storage": ("    return ops.inductor.resize_storage_bytes_(x, 9)\n", "inductor"),
    "unsafe lengths": ('    return torch.segment_reduce(x, "sum", unsafe=True)\n', "segment_reduce"),
    "unsafe indices": ("    return torch._sparse_coo_tensor_unsafe(x, x, [9])\n", "_sparse_coo_tensor_unsafe"),
    "unsafe rows": ("    return torch._sparse_csr_tensor_unsafe(x, x, x, [9])\n", "_sparse_csr_tensor_unsafe"),
    "strides": ("    return torch.as_strided_(x, [9], [9])\n", "torch.as_strided_"),
    "a quantized operator": ("    return ops.quantized.relu6(x)\n", "quantized"),
}  # fmt: skip
# Kernels that read or write beyond arguments that do not fit, behind operators that check them.
BEYOND = [
    "_native_batch_norm_legit",
    "_reshape_alias",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_transform_bias_rescale_qkv",
    "_weight_norm_interface",
    "native_batch_norm",
    "slow_conv_transpose2d",
    "thnn_conv2d",
]
ROUND |= {kernel: (f"    return torch.{kernel}(x)\n", kernel) for kernel in BEYOND}


@pytest.mark.parametrize("name", ROUND)
def test_no_way_leads_round_the_list_of_operators(name: str) -> None:
    body, word = ROUND[name]
    refused = refusal(with_body(body))
    assert word in refused.message


def test_the_body_is_what_is_refused() -> None:
    assert "forward" in checked(with_body("    return x\n")).methods


def test_a_method_that_hides_an_operator_is_seen_in_what_torch_made_of_it() -> None:
    """Only torch knows whether `x.f` is a tensor's; an interface hides even from torch whose method is called."""
    hidden = with_body("    return x.resize_([3])\n  def resize_(self: CLASS, y: Tensor) -> Tensor:\n    return y\n")
    assert refusal_of(lambda: checked(hidden)) is None
    with pytest.raises(JobFailureError, match="aten::resize_") as refused:
        require_permitted(torch.jit.load(io.BytesIO(hidden)), "model")
    assert refused.value.reason is Reason.MODEL_REFUSED


@torch.jit.interface
class Shaper:
    def shape(self, x: torch.Tensor) -> torch.Tensor:
        pass


@torch.jit.script
class Keeps:
    def __init__(self) -> None:
        self.count = 1

    def shape(self, x: torch.Tensor) -> torch.Tensor:
        return x


@torch.jit.script
class Resizes:
    def __init__(self) -> None:
        self.count = 1

    def shape(self, x: torch.Tensor) -> torch.Tensor:
        return x.resize_([3])


@torch.jit.script
def chosen(first: Shaper, second: Shaper, x: torch.Tensor) -> torch.Tensor:
    shaper = first if bool(x.sum() > 0) else second
    return shaper.shape(x)


class BehindAnInterface(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return chosen(Keeps(), Resizes(), x)


def test_what_is_called_through_an_interface_is_seen() -> None:
    with pytest.raises(JobFailureError, match="aten::resize_"):
        require_permitted(torch.jit.script(BehindAnInterface()), "model")


def data_pickle(data: bytes) -> bytes:
    return next(d for n, d in entries(data).items() if n.endswith("/data.pkl"))


def with_pickle(change: Callable[[bytes], bytes]) -> bytes:
    good = archive()
    before = data_pickle(good)
    after = change(before)
    assert after != before
    return changed(good, {"data.pkl": after})


def prefixed(opcodes: bytes) -> Callable[[bytes], bytes]:
    """Opcodes before the object itself."""
    return lambda pickle: pickle[:2] + opcodes + pickle[2:]


PICKLES: dict[str, Callable[[bytes], bytes]] = {
    "nested lists": prefixed(b"]" * 200_000),
    "nested lists, closed": lambda _: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "nested tuples": lambda _: b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "nested marks": prefixed(b"(" * 200_000),
    "a memo that refers to itself": lambda _: b"\x80\x02]q\x00h\x00a.",
    "a memo bomb": lambda _: b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 100_000 + b".",
    "a huge memo index": prefixed(b"Nr\xff\xff\xff\xff"),
    "a huge string": prefixed(b"X\xff\xff\xff\xff"),
    "a huger string": prefixed(b"\x8d" + b"\xff" * 7 + b"\x7f"),
    "a huge number": prefixed(b"\x8a\xff" + b"\xff" * 255),
    "os.system": lambda _: b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
    "os.system as an object": lambda _: b"\x80\x02cos\nsystem\n)\x81.",
    "os.system inside the model": lambda p: p.replace(
        b"X\x08\x00\x00\x00training",
        b"X\x01\x00\x00\x00acos\nsystem\nX\x02\x00\x00\x00id\x85RX\x08\x00\x00\x00training",
    ),
    "eval by name": lambda p: p.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n"),
    "STACK_GLOBAL": lambda _: b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "INST": lambda _: b"\x80\x02(ios\nsystem\n.",
    "OBJ": lambda _: b"\x80\x02(cos\nsystem\no.",
    "EXT1": lambda _: b"\x80\x02\x82\x01.",
    "PERSID": lambda _: b"\x80\x02Pdata/0\n.",
    "a frame": lambda _: b"\x80\x04\x95" + b"\xff" * 8 + b".",
    "nothing": lambda _: b"",
    "no end": lambda p: p[:-1],
    "a longer storage": lambda p: p.replace(b"K\x10tQ", b"J\x00\x00\x04\x00tQ"),
    "a shorter storage": lambda p: p.replace(b"K\x10tQ", b"K\x04tQ"),
    "a negative storage": lambda p: p.replace(b"K\x10tQ", b"J\xf0\xff\xff\xfftQ"),
    "a storage that overflows": lambda p: p.replace(b"K\x10tQ", b"\x8a\x08\x04\x00\x00\x00\x00\x00\x00\x40tQ"),
    "another's storage": lambda p: p.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007"),
    "a storage outside": lambda p: p.replace(b"X\x01\x00\x00\x000", b"X\x0b\x00\x00\x00../data.pkl"),
    "a storage of doubles": lambda p: p.replace(b"FloatStorage", b"DoubleStorage"),
    "a storage of nothing known": lambda p: p.replace(b"FloatStorage", b"BloatStorage"),
    "a quantized tensor": lambda p: p.replace(b"_rebuild_tensor_v2", b"_rebuild_qtensor"),
}
# The tensor in its storage of 16 elements: offset, sizes (4, 4), and strides (4, 1) behind them.
VIEW = b"K\x00(K\x04K\x04t"
WIDE = b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40"
VIEWS = {
    "an offset beyond": b"K\x01(K\x04K\x04t",
    "a negative offset": b"J\xff\xff\xff\xff(K\x04K\x04t",
    "a size beyond": b"K\x00(K\x05K\x04t",
    "a negative size": b"K\x00(K\x04J\xff\xff\xff\xfft",
    "sizes that overflow": b"K\x00(" + WIDE + WIDE + b"t",
    "an axis without a stride": b"K\x00(K\x04K\x04K\x01t",
    "no sizes": b"K\x00N",
}


def viewed(new: bytes) -> Callable[[bytes], bytes]:
    return lambda pickle: pickle.replace(VIEW, new)


PICKLES |= {name: viewed(new) for name, new in VIEWS.items()}
PICKLES["negative strides"] = lambda p: p.replace(b"(K\x04K\x01t", b"(J\xfc\xff\xff\xffK\x01t")


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str) -> None:
    refused = refusal(with_pickle(PICKLES[name]))
    if "os.system" in name:
        assert "os.system" in refused.message


def zip_entries(data: bytes) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return source.infolist()


def overlapping() -> bytes:
    """Two entries of the table of contents that share one payload."""
    data = bytearray(repacked(archive()))
    start = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", start + 4)
    data[second + 42 : second + 46] = data[start + 42 : start + 46]
    return bytes(data)


def lying(field: int, value: int) -> Callable[[], bytes]:
    """A number of 32 bits in the first entry of the table of contents replaced."""

    def make() -> bytes:
        data = bytearray(repacked(archive()))
        position = data.index(b"PK\x01\x02") + field
        data[position : position + 4] = struct.pack("<I", value)
        return bytes(data)

    return make


def renamed(change: Callable[[str], str]) -> Callable[[], bytes]:
    return lambda: zipped([(change(name), data) for name, data in entries(archive()).items()])


def first_name(name: str) -> str:
    """Of an entry beside those of the model."""
    return f"{zip_entries(archive())[0].filename.split('/')[0]}/{name}"


ZIPS: dict[str, Callable[[], bytes]] = {
    "all in capitals": renamed(str.upper),
    "code in capitals": renamed(lambda name: name.replace("/code/", "/CODE/")),
    "a second file of code, in capitals": lambda: zipped(
        [*entries(archive()).items(), (first_name("CODE/__torch__.PY"), b"x")]
    ),
    "the same name twice": lambda: zipped([*entries(archive()).items(), (first_name("data.pkl"), b"x")]),
    "a parent folder": lambda: zipped([*entries(archive()).items(), ("../x", b"x")]),
    "an absolute name": lambda: zipped([*entries(archive()).items(), ("/etc/x", b"x")]),
    "another root": lambda: zipped([*entries(archive()).items(), ("other/data.pkl", b"x")]),
    "a name with a control character": renamed(lambda name: name.replace("version", "versio\x1fn")),
    "junk before": lambda: b"\x7fELF" + archive(),
    "junk behind": lambda: archive() + b"\x00",
    "a zip behind": lambda: archive() + archive(),
    "overlapping entries": overlapping,
    "a wrong checksum": lying(16, 0),
    "a longer packed size": lying(20, 1 << 20),
    "a longer size": lying(24, 1 << 20),
    "sizes in 64 bits that are not there": lying(24, 0xFFFFFFFF),
    "an offset behind the end": lying(42, 1 << 30),
    "big-endian": lambda: changed(archive(), {"byteorder": b"big"}),
    "a short record": lambda: changed(archive(), {"data/0": bytes(16)}),
    "a long record": lambda: changed(archive(), {"data/0": bytes(1 << 16)}),
    "version 2": lambda: changed(archive(), {"version": b"2"}),
    "version 11": lambda: changed(archive(), {"version": b"11"}),
    "version 0": lambda: changed(archive(), {"version": b"0"}),
    "version -1": lambda: changed(archive(), {"version": b"-1"}),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips(name: str) -> None:
    refusal(ZIPS[name]())


DEEP = {
    "parentheses": "(" * 100_000 + "x" + ")" * 100_000,
    "lists": "[" * 100_000 + "]" * 100_000,
    "signs": "-" * 200_000 + "1",
    "a sum": "1" + "+1" * 50_000,
    "attributes": "x" + ".a" * 50_000,
    "items": "x" + "[0]" * 50_000,
}


@pytest.mark.parametrize("name", DEEP)
def test_source_that_is_nested_so_deeply_that_torch_would_die(name: str) -> None:
    refusal(with_body(f"    return {DEEP[name]}\n"))


def test_a_type_that_is_nested_so_deeply_that_torch_would_die() -> None:
    refusal(with_body(f"    y : {'List[' * 100_000}int{']' * 100_000} = x\n    return x\n"))


def npy(header: str, payload: bytes = b"", *, version: int = 1, length: int | None = None) -> bytes:
    """An .npy with this header."""
    text = header.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + payload


def fields(descr: str = "'<f4'", shape: str = "(2,)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


ARRAYS: dict[str, bytes] = {
    "objects": npy(fields("'|O'"), b"cos\nsystem\n."),
    "a record with objects": npy(fields("[('a', '|O')]"), bytes(16)),
    "more than is there": npy(fields(shape="(1000000000000,)"), bytes(8)),
    "less than is there": npy(fields(shape="(1,)"), bytes(8)),
    "a negative shape": npy(fields(shape="(-2,)"), bytes(8)),
    "a shape that overflows": npy(fields(shape="(4294967296, 4294967296)"), bytes(8)),
    "a shape of floats": npy(fields(shape="(2.0,)"), bytes(8)),
    "a shape of truths": npy(fields(shape="(True, 2)"), bytes(8)),
    "a call": npy(fields(shape="__import__('os').system('id')"), bytes(8)),
    "nesting": npy(fields(shape="(" * 3000 + ")" * 3000), bytes(8)),
    "signs": npy(fields(shape="-" * 7000 + "1"), bytes(8)),
    "a header beyond the file": npy(fields(), bytes(8), version=2, length=(1 << 31) - 1),
    "no header": npy("", bytes(8)),
    "an unknown version": npy(fields(), bytes(8), version=9),
    "items of nothing": npy(fields("'<U0'"), b""),
    "items of a gigabyte": npy(fields("'<U268435456'"), bytes(8)),
    "a raw pickle": b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refused = refusal_of(
            lambda method=method: check_dataset(io.BytesIO(zipped({"inputs.npy": ARRAYS[name]}, method)))
        )
        assert refused is not None
        assert refused.reason.value.startswith("DATASET_")


def test_a_small_file_with_a_large_array() -> None:
    bomb = npz(compressed=True, inputs=np.zeros((1 << 28) // 4 + 1024, dtype=np.float32))
    assert len(bomb) < 1 << 20
    refused = refusal_of(lambda: check_dataset(io.BytesIO(bomb)))
    assert refused is not None
    assert "unpacks" in refused.message


def safe(header: bytes, payload: bytes = bytes(8), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + payload


def tensor(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


SAFETENSORS: dict[str, bytes] = {
    "a shape that overflows": safe(f'{{"inputs":{tensor(shape="[4294967296,4294967296]")}}}'.encode()),
    "a negative shape": safe(f'{{"inputs":{tensor(shape="[-1,-2]")}}}'.encode()),
    "offsets beyond": safe(f'{{"inputs":{tensor(offsets="[0,800]", shape="[200]")}}}'.encode()),
    "offsets turned round": safe(f'{{"inputs":{tensor(offsets="[8,0]")}}}'.encode()),
    "overlapping": safe(f'{{"inputs":{tensor()},"targets":{tensor()}}}'.encode()),
    "a gap": safe(f'{{"inputs":{tensor(offsets="[8,16]")}}}'.encode(), bytes(16)),
    "something behind": safe(f'{{"inputs":{tensor()}}}'.encode(), bytes(9)),
    "a name twice": safe(f'{{"inputs":{tensor()},"inputs":{tensor()}}}'.encode()),
    "nesting": safe(b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a huge number": safe(f'{{"inputs":{tensor(shape="[" + "9" * 5000 + "]")}}}'.encode()),
    "an unknown type": safe(f'{{"inputs":{tensor(dtype="PICKLE")}}}'.encode()),
    "floats": safe(f'{{"inputs":{tensor(shape="[2.0]")}}}'.encode()),
    "a header beyond the file": safe(b'{"inputs":{}}', length=1 << 40),
    "a list": safe(b'["inputs"]          '),
    "no JSON": safe(b"{inputs: os.system}"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(name: str) -> None:
    refused = refusal_of(lambda: check_dataset(io.BytesIO(SAFETENSORS[name])))
    assert refused is not None
    assert refused.reason.value.startswith("DATASET_")


class Resizing(nn.Module):
    """Operators that torch's own code names whether or not they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2.0, mode="bilinear")
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.up(x)[:, 0])


def test_what_torchs_own_layers_name_is_on_the_list() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = saved(torch.jit.script(Resizing().eval()))
    assert "forward" in checked(data).methods
    require_permitted(torch.jit.load(io.BytesIO(data)), "model")
