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


def duplicate(module: Module) -> Module:
    """A copy through the archive format; it also drops every plan that torch has compiled for the original.

    Tensors that share memory share it in the copy too; nothing is shared with the original.
    """
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)  # type: ignore[no-any-return]


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


# --- Editing ----------------------------------------------------------------------------------------------------------


def insert_attribute_read(graph: Graph, before: Node, name: str, like: Value) -> Value:
    """Inserts a read of `self.<name>` before a node; the value has the type of `like`."""
    node = graph.create("prim::GetAttr", [next(iter(graph.inputs()))], 1)
    node.s_("name", name)
    node.insertBefore(before)
    node.output().setType(like.type())
    return node.output()


def replace_input(node: Node, index: int, value: Value) -> None:
    """Replaces one argument of one node; other users of the old value keep it."""
    node.replaceInput(index, value)


def replace_constant_by_attribute(graph: Graph, constant: Node, name: str) -> None:
    """Every user of a constant reads `self.<name>` instead."""
    old = constant.output()
    read = insert_attribute_read(graph, constant, name, old)
    # A constant's type carries its sizes and that it needs no gradient; an attribute's does not.
    read.setType(torch._C.TensorType.get())
    old.replaceAllUsesWith(read)
    constant.destroy()


def insert_constant(graph: Graph, before: Node, value: float) -> Value:
    """A new number before a node, in its block."""
    with graph.insert_point_guard(before):
        return graph.insertConstant(value)


def insert_arithmetic(graph: Graph, before: Node, op: str, one: Value, other: Value, like: Value) -> Value:
    """A new op on two numbers before a node; the result has the type of `like`."""
    node = graph.create(op, [one, other], 1)
    node.insertBefore(before)
    node.output().setType(like.type())
    return node.output()


def insert_list(graph: Graph, before: Node, elements: Sequence[Value], like: Value | None) -> Value:
    """A new list of numbers before a node, of the type of `like`; a list of ints without one."""
    node = graph.create("prim::ListConstruct", list(elements), 1)
    node.insertBefore(before)
    is_list = like is not None and type_kind(like) == "ListType"
    node.output().setType(like.type() if like is not None and is_list else torch._C.ListType.ofInts())
    return node.output()


def insert_unpack(graph: Graph, before: Node, content: Value, length: int) -> list[Value]:
    """The elements of a list of ints, as it is right before a node."""
    node = graph.create("prim::ListUnpack", [content], length)
    node.insertBefore(before)
    values = list(node.outputs())
    for value in values:
        value.setType(torch._C.IntType.get())
    return values


def insert_op(graph: Graph, before: Node, op: str, inputs: Sequence[Value]) -> Node:
    """A new op with one result before a node."""
    node = graph.create(op, list(inputs), 1)
    node.insertBefore(before)
    return node


def replace_node(old: Node, new: Node) -> None:
    """Every user of a node's only result takes that of another, and the node goes."""
    new.output().setType(old.output().type())
    old.output().replaceAllUsesWith(new.output())
    old.destroy()


def is_private_list(value: Value) -> bool:
    """Whether a list is built right from its elements for one user, so that nothing can have changed it since."""
    return value.node().kind() == "prim::ListConstruct" and len(value.uses()) == 1


def set_constant_tensor(node: Node, tensor: torch.Tensor) -> None:
    """Replaces the tensor of a constant node."""
    node.t_("value", tensor)
    node.output().inferTypeFrom(tensor)


class ShapeLog:
    """Instruments a private graph so that one call returns the shapes of the values asked for, run by run.

    Only sizes are kept, appended to one list in the graph, so activations can be freed and the blocks of If and Loop
    are reached too.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        first = next(iter(graph.nodes()), graph.return_node())
        self._log = graph.create("prim::ListConstruct", [], 1).insertBefore(first).output()
        self._log.setType(torch._C.ListType(torch._C.ListType.ofInts()))

    def start(self, node: Node, number: int) -> None:
        """Logs that node `number` begins another execution; call before recording any of its values."""
        with self._graph.insert_point_guard(node):
            self._append(self._graph.insertConstant([number])).insertBefore(node)

    def record(self, node: Node, value: Value, slot: int, *, after: bool) -> None:
        """Logs the sizes of a tensor right before or after `node` runs, under a number of the caller's choice."""
        with self._graph.insert_point_guard(node):
            label = self._append(self._graph.insertConstant([slot]))
        sizes = self._graph.create("aten::size", [value], 1)
        sizes.output().setType(torch._C.ListType.ofInts())
        content = self._append(sizes.output())
        if after:
            sizes.insertAfter(node)
            label.insertAfter(sizes)
            content.insertAfter(label)
        else:
            for created in (sizes, label, content):
                created.insertBefore(node)

    def _append(self, value: Value) -> Node:
        node = self._graph.create("aten::append", [self._log, value], 1)
        node.output().setType(self._log.type())
        return node

    def run(self, module: Module, inputs: Sequence[object]) -> list[tuple[int, ...]]:
        """Runs the graph once; returns what was logged, in order: `(number,)` per start, `(slot,)` and sizes per record."""
        self._graph.registerOutput(self._log)
        self._graph.makeMultiOutputIntoTuple()
        function = torch._C._create_function_from_graph("observed", self._graph)
        return [tuple(entry) for entry in function(module._c, *inputs)[-1]]


def tensors_in(value: Value) -> list[Value]:
    """The tensors that a value is: itself, or the elements of a list that the graph builds from known ones."""
    if is_tensor(value):
        return [value]
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return [element for element in node.inputs() if is_tensor(element)]
    return []
