"""The only place that touches `torch._C`: methods, graphs, nodes, attributes of a loaded TorchScript module.

The rest of the room reads graphs through these functions, so that a change of torch's internals is met here alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch

# torch's own stubs know about half of what these objects can do.
Graph: TypeAlias = Any
Block: TypeAlias = Any
Node: TypeAlias = Any
Value: TypeAlias = Any
Module: TypeAlias = torch.jit.ScriptModule


class _Opaque:
    """Stands for an attribute that Python cannot read, such as an instance of a TorchScript class."""


OPAQUE = _Opaque()
_NESTED = frozenset({"ListType", "DictType", "TupleType", "OptionalType"})


@dataclass(frozen=True)
class Argument:
    """One argument of an operator's schema; `written`: the operator changes it in place."""

    name: str
    written: bool


@dataclass(frozen=True)
class Operator:
    """How an op is called from Python.

    Attributes:
        call: takes the first `positional` arguments by position and the others by the names in `keywords`.
        positional: number of arguments that are passed by position.
        keywords: names of the arguments that can only be passed by name; they come last.
        results: number of results; several come as a tuple.
    """

    call: Callable[..., Any]
    positional: int
    keywords: tuple[str, ...]
    results: int


# --- Modules ----------------------------------------------------------------------------------------------------------


def method_names(module: Module) -> tuple[str, ...]:
    """Methods of the root that can be called, `forward` first, the others in alphabetical order."""
    names = set(module._c._method_names())
    first = [name for name in ("forward",) if name in names]
    return (*first, *sorted(names - set(first)))


def children(module: Module) -> Iterator[tuple[str, Module]]:
    """Direct submodules by attribute name; one that is reachable under two names comes twice."""
    yield from _children(module).items()


def _children(module: Module) -> dict[str, Module]:
    modules: Any = module._modules
    return dict(modules.items())


def attributes(module: Module) -> Iterator[tuple[str, Any, bool]]:
    """Yields (name, value, is parameter) of what a module itself holds besides submodules; `OPAQUE` where unreadable."""
    stored: Any = torch._C.ParameterDict(module._c)
    parameters = dict(stored.items())
    concrete: Any = torch._C.ConcreteModuleType.from_jit_type(module._c._type())
    for name, value in parameters.items():
        yield name, value, True
    # torch lists attributes in no order; a natural one keeps results the same on every machine.
    for name in sorted(concrete.get_attributes(), key=_natural):
        if name not in parameters:
            yield name, read_attribute(module, name), False


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `item_10` behind `item_9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def read_attribute(module: Module, name: str) -> Any:
    """The value of an attribute; `OPAQUE` where Python cannot hold it."""
    try:
        return module._c.getattr(name)
    except RuntimeError:  # torch cannot convert instances of TorchScript classes that this process never compiled
        return OPAQUE


@dataclass(frozen=True)
class Turn:
    """One step on the way to what an instance of a TorchScript class holds: an attribute's name, or a key in a container.

    Attributes:
        name: of the attribute; None where `key` is looked up.
        type: what is there, as the graph that reads it says.
    """

    name: str | None
    key: object
    type: Any


def holds_instances(kind: Any) -> bool:
    """Whether values of a type are, or contain, instances of TorchScript classes, which Python cannot read."""
    if kind.kind() == "ClassType":
        return True
    return kind.kind() in _NESTED and any(holds_instances(inner) for inner in kind.containedTypes())


def read_along(module: Module, way: Sequence[Turn]) -> Any:
    """What is at the end of a way from a module, which must not be an instance itself."""
    graph: Any = torch._C.Graph()
    value = graph.addInput("self")
    value.setType(module._c._type())
    for turn in way:
        if turn.name is None:
            node = graph.create("aten::__getitem__", [value, graph.insertConstant(turn.key)], 1)
        else:
            node = graph.create("prim::GetAttr", [value], 1)
            node.s_("name", turn.name)
        graph.insertNode(node)
        node.output().setType(turn.type)
        value = node.output()
    graph.registerOutput(value)
    internals: Any = torch._C
    return internals._jit_interpret_graph(graph, (module._c,))


def set_attribute(module: Module, name: str, value: object) -> None:
    """Sets an attribute of a module; its type must fit."""
    module._c.setattr(name, value)


def has_attribute(module: Module, name: str) -> bool:
    """Whether the module's type declares the attribute."""
    return bool(module._c.hasattr(name))


def register_tensor(module: Module, name: str, tensor: torch.Tensor) -> None:
    """Adds a plain tensor attribute."""
    module._c._register_attribute(name, torch._C.TensorType.get(), tensor)


def register_flag(module: Module, name: str, value: bool) -> None:
    """Adds a bool attribute."""
    module._c._register_attribute(name, torch._C.BoolType.get(), value)


def register_number(module: Module, name: str, value: float) -> None:
    """Adds a float attribute."""
    module._c._register_attribute(name, torch._C.FloatType.get(), value)


def duplicate(module: Module) -> Module:
    """A copy through the archive format; it also drops every plan that torch has compiled for the original.

    Tensors that share memory share it in the copy too; nothing is shared with the original.
    """
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)  # type: ignore[no-any-return]


def defined_graphs(module: Module) -> Iterator[Graph]:
    """The graphs, not inlined, of every function and of every method of every class that the module's archive defines."""
    # Their declared types are not those of what is there.
    unit: Any = torch._C.CompilationUnit()
    read: Any = torch._C.import_ir_module_from_buffer
    read(unit, module.save_to_buffer(), None, {}, False)
    for function in unit.get_functions():
        yield function.graph


def identity(module: Module) -> int:
    """The same number for every Python object that stands for the same module."""
    return hash(module._c)


def default_arguments(module: Module, given: int, method: str = "forward") -> list[object]:
    """Defaults of a method's arguments from position `given` on (0 is the first after self).

    Raises:
        TypeError: an argument without a default is missing.
    """
    declared = module._c._get_method(method).schema.arguments[1:]
    for argument in declared[given:]:
        if not argument.has_default_value():
            raise TypeError(f"{method}() is missing a value for argument '{argument.name}'")
    return [argument.default_value for argument in declared[given:]]


def argument_count(module: Module, method: str) -> int:
    """Number of a method's arguments that have no default, the module itself not counted."""
    declared = module._c._get_method(method).schema.arguments[1:]
    return sum(not argument.has_default_value() for argument in declared)


def required_types(module: Module, method: str) -> tuple[str, ...]:
    """Types of a method's arguments after self that have no default, such as `Tensor`, `int`."""
    declared = module._c._get_method(method).schema.arguments[1:]
    return tuple(str(argument.type) for argument in declared if not argument.has_default_value())


# --- Graphs -----------------------------------------------------------------------------------------------------------


def inlined_copy(module: Module, method: str) -> Graph:
    """A private copy of a method's graph with every call inlined (calls through an interface stay)."""
    return _inlined(module._c._get_method(method).graph.copy())


def inline_in_place(module: Module, method: str) -> Graph:
    """Inlines the method's own graph and returns it: edits to it are what the archive will hold."""
    return _inlined(module._c._get_method(method).graph)


# Deeper nesting of calls than any code has.
_MOST_LEVELS = 200


def _inlined(graph: Graph) -> Graph:
    """Inlines level by level: what was first compiled with optimization switched off comes back one level at a time."""
    for _ in range(_MOST_LEVELS):
        torch._C._jit_pass_inline(graph)
        if not any(_can_be_inlined(node) for node in walk(graph)):
            break
    return graph


def _can_be_inlined(node: Node) -> bool:
    """Whether a node is a call whose code is known; that of a call through an interface is not."""
    if node.kind() == "prim::CallMethod":
        return type_kind(next(iter(node.inputs()))) != "InterfaceType"
    return bool(node.kind() == "prim::CallFunction")


def method_graph(module: Module, method: str) -> Graph | None:
    """The inlined graph of a method of any submodule; None where there is no such method."""
    if not module._c._has_method(method):
        return None
    return inlined_copy(module, method)


def walk(block: Graph | Block) -> Iterator[Node]:
    """Every node in program order, those inside the blocks of If and Loop after their owner."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from walk(inner)


def constant_of(value: Value) -> tuple[bool, Any]:
    """Whether a value is a constant of the graph, and its Python value."""
    node = value.node()
    if node.kind() != "prim::Constant":
        return False, None
    return True, value.toIValue()


def constant_tensor(node: Node) -> torch.Tensor | None:
    """The tensor of a constant node itself (not a copy); None for other nodes."""
    if node.kind() != "prim::Constant" or not node.hasAttribute("value") or node.kindOf("value") != "t":
        return None
    return node.t("value")  # type: ignore[no-any-return]


def type_kind(value: Value) -> str:
    """Kind of a value's type: `TensorType`, `ListType`, `ClassType`, ..."""
    return str(value.type().kind())


def is_tensor(value: Value) -> bool:
    """Whether the value is statically a tensor."""
    return type_kind(value) == "TensorType"


def may_hold_tensor(value: Value) -> bool:
    """Whether the value is a tensor, a container of tensors, or an object that may hold some."""
    return type_kind(value) in {"ClassType", "InterfaceType", "AnyType"} or "Tensor" in str(value.type().annotation_str)


def source_of(node: Node) -> str:
    """Where the node stands in the model's code: `file:line:column`, or "" where the archive does not say."""
    text = str(node.sourceRange()).strip()
    if text.startswith("File "):
        return text.splitlines()[0].strip()
    return text.splitlines()[0].strip() if text and not text.startswith(":") else ""


@lru_cache(maxsize=4096)
def _arguments(schema: str) -> tuple[Argument, ...]:
    if schema.startswith("(no schema)"):
        return ()
    parsed = torch._C.parse_schema(schema)
    return tuple(
        Argument(argument.name, argument.alias_info is not None and argument.alias_info.is_write)
        for argument in parsed.arguments
    )


def arguments_of(node: Node) -> tuple[Argument, ...]:
    """The operator's declared arguments, in the order of the node's inputs; empty for nodes without a schema."""
    return _arguments(node.schema())


@lru_cache(maxsize=4096)
def _operator(schema: str) -> Operator | None:
    if schema.startswith("(no schema)"):
        return None
    parsed = torch._C.parse_schema(schema)
    found: Any = torch._C._get_operation_overload(parsed.name, parsed.overload_name)
    if found is None:
        return None
    keywords = tuple(argument.name for argument in parsed.arguments if argument.kwarg_only)
    return Operator(found[0], len(parsed.arguments) - len(keywords), keywords, len(parsed.returns))


def operator_of(node: Node) -> Operator | None:
    """How to call a node's op; None where it is not an operator but a part of the language."""
    return _operator(node.schema())


def attribute_name(node: Node) -> str:
    """The attribute that a GetAttr or SetAttr node names, or the method of a CallMethod node."""
    return str(node.s("name"))


def slice_bounds(node: Node) -> tuple[int, int]:
    """First and one-past-last index of a TupleSlice node."""
    return int(node.i("beg")), int(node.i("end"))


def inner_graph(node: Node) -> Graph | None:
    """The graph that a fork or closure node holds; None for other nodes."""
    return node.g("Subgraph") if node.hasAttribute("Subgraph") else None


def tested_types(node: Node) -> tuple[str, ...]:
    """Kinds of the types that an isinstance node tests for: `TensorType`, `IntType`, ..."""
    return tuple(str(one.kind()) for one in node.tys("types"))


def tensors_in(value: Value) -> list[Value]:
    """The tensors that a value is: itself, or the elements of a list that the graph builds from known ones."""
    if is_tensor(value):
        return [value]
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return [element for element in node.inputs() if is_tensor(element)]
    return []
