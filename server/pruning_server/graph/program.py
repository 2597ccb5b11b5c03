"""A graph as plain values that can be run again and again: steps, their blocks, and when each value is no longer needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pruning_server.graph import ir

_CONTAINERS = frozenset({"ListType", "DictType", "TupleType"})
_MAYBE_NONE = frozenset({"OptionalType", "AnyType", "UnionType", "NoneType"})
_IDENTITY_TESTS = frozenset({"aten::__is__", "aten::__isnot__"})

# What these read of a tensor is the same before and after channels were removed.
_STABLE_READS = _IDENTITY_TESTS | {
    "prim::isinstance",
    "aten::dim",
    "prim::dtype",
    "prim::device",
    "prim::is_cuda",
    "prim::is_nested",
    "prim::requires_grad",
    "aten::is_floating_point",
}
_STRUCTURE = frozenset(
    {
        "prim::Constant",
        "prim::GetAttr",
        "prim::ListConstruct",
        "prim::TupleConstruct",
        "prim::TupleUnpack",
        "prim::TupleIndex",
        "prim::ListUnpack",
        "prim::unchecked_cast",
        "prim::unchecked_unwrap_optional",
        "aten::_unwrap_optional",
    }
)
EFFECTS = frozenset(
    {
        "prim::SetAttr",
        "prim::CallMethod",
        "prim::CallFunction",
        "prim::PythonOp",
        "prim::fork",
        "prim::Enter",
        "prim::Exit",
        "aten::set_grad_enabled",
        "aten::manual_seed",
        "aten::batch_norm",
        "aten::instance_norm",
    }
)
# What these return nothing else holds, so that changing it in place concerns nobody.
_NEW = frozenset(
    {
        "prim::ListConstruct",
        "prim::DictConstruct",
        "aten::zeros",
        "aten::ones",
        "aten::full",
        "aten::empty",
        "aten::zeros_like",
        "aten::ones_like",
        "aten::full_like",
        "aten::empty_like",
        "aten::clone",
    }
)
_RANDOM = frozenset({"aten::rand", "aten::randint", "aten::seed", "aten::initial_seed", "prim::TimePoint"})


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        node: the node itself.
        op: its kind, such as `aten::conv2d`.
        inputs: numbers of the values that it reads.
        outputs: numbers of the values that it sets.
        blocks: the blocks of If and Loop.
        captured: values from outside that the blocks read.
        drops: values that nothing reads after this step.
        on_container: its first input is statically a list, dict or tuple.
        pure: its results depend on nothing but its inputs, and on no tensor's elements or sizes.
        settled: its result is known from the static types alone, or is a number of axes, which belongs to what a method
            is called with: code for inputs of another rank than any sample's is not looked into.
        writes: positions of the inputs that it changes in place.
        writes_container: it changes a list or dict in place.
        tests_none: its result is whether its first input is None.
    """

    node: ir.Node
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    blocks: tuple[Program, ...]
    captured: tuple[int, ...]
    drops: tuple[int, ...]
    on_container: bool
    pure: bool
    settled: bool
    writes: tuple[int, ...]
    writes_container: bool
    tests_none: bool


@dataclass(frozen=True)
class Program:
    """A block in the order of execution.

    Attributes:
        inputs: numbers of its own inputs.
        steps: its nodes.
        outputs: numbers of the values that it returns.
        raises: it always ends in an exception.
        effects: it does what cannot be taken back, such as setting an attribute.
        writes: numbers of values that it changes in place and has not made itself.
        present: per output, whether it is never None.
    """

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    raises: bool
    effects: bool
    writes: frozenset[int]
    present: tuple[bool, ...]

    @property
    def harmless(self) -> bool:
        """Whether running it changes nothing but its own values."""
        return not (self.effects or self.writes)


@dataclass(frozen=True)
class Method:
    """A compiled method. The graph is kept because its nodes live as long as it does."""

    graph: ir.Graph
    program: Program
    settable: frozenset[str]


def compile_graph(graph: ir.Graph) -> Method:
    """Turns an inlined graph into steps; `settable` names the attributes that its code sets or changes."""
    program = _block(graph, list(graph.inputs()))
    return Method(graph, program, frozenset(_set_names(program)))


def all_steps(program: Program) -> Iterator[Step]:
    """Every step, those of inner blocks after their owner."""
    for step in program.steps:
        yield step
        for block in step.blocks:
            yield from all_steps(block)


def _block(block: ir.Block, inputs: Sequence[ir.Value]) -> Program:
    nodes = list(block.nodes())
    compiled = [[_block(inner, list(inner.inputs())) for inner in node.blocks()] for node in nodes]
    outputs = tuple(value.unique() for value in block.outputs())
    own = {value.unique() for value in inputs} | {value.unique() for node in nodes for value in node.outputs()}
    seen = set(outputs)
    steps: list[Step] = []
    for node, blocks in zip(reversed(nodes), reversed(compiled), strict=True):
        step = _step(node, tuple(blocks), seen, own)
        seen.update((*step.inputs, *step.captured, *step.outputs))
        steps.append(step)
    steps.reverse()
    raises = any(
        step.op == "prim::RaiseException"
        or (step.blocks and all(inner.raises for inner in step.blocks) and step.op == "prim::If")
        for step in steps
    )
    return Program(
        inputs=tuple(value.unique() for value in inputs),
        steps=tuple(steps),
        outputs=outputs,
        raises=bool(raises),
        effects=any(step.op in EFFECTS or any(inner.effects for inner in _open_blocks(step)) for step in steps),
        writes=_outer_writes(steps),
        present=tuple(ir.type_kind(value) not in _MAYBE_NONE for value in block.outputs()),
    )


def _outer_writes(steps: Sequence[Step]) -> frozenset[int]:
    """What steps change in place, but for values that they have made."""
    own: set[int] = set()
    written: set[int] = set()
    for step in steps:
        changed = {step.inputs[position] for position in step.writes if position < len(step.inputs)}
        changed |= {number for block in _open_blocks(step) for number in block.writes}
        written |= changed - own
        if step.op in _NEW or (step.writes and changed <= own):
            own.update(step.outputs)
    return frozenset(written)


def _open_blocks(step: Step) -> tuple[Program, ...]:
    """The blocks that may run: a constant of the code closes one of an If, such as the in-place form of an activation."""
    if step.op == "prim::If":
        known, condition = ir.constant_of(next(iter(step.node.inputs())))
        if known:
            return step.blocks[:1] if condition else step.blocks[1:]
    return step.blocks


def _step(node: ir.Node, blocks: tuple[Program, ...], later: set[int], own: set[int]) -> Step:
    values = list(node.inputs())
    inputs = tuple(value.unique() for value in values)
    outputs = tuple(value.unique() for value in node.outputs())
    captured = tuple(sorted({number for block in blocks for number in _free(block)}))
    touched = dict.fromkeys((*inputs, *captured, *outputs))
    kinds = [ir.type_kind(value) for value in values]
    op = node.kind()
    writes = tuple(position for position, argument in enumerate(ir.arguments_of(node)) if argument.written)
    return Step(
        node=node,
        op=op,
        inputs=inputs,
        outputs=outputs,
        blocks=blocks,
        captured=captured,
        drops=tuple(number for number in touched if number not in later and number in own),
        on_container=bool(kinds) and kinds[0] in _CONTAINERS,
        pure=_is_pure(node, op, values) and not writes,
        settled=op == "aten::dim"
        or (op in _IDENTITY_TESTS and len(kinds) == 2 and kinds[1] == "NoneType" and kinds[0] not in _MAYBE_NONE),
        writes=writes,
        tests_none=op in _IDENTITY_TESTS and len(kinds) == 2 and kinds[1] == "NoneType",
        writes_container=any(position < len(kinds) and kinds[position] in _CONTAINERS for position in writes),
    )


def _free(program: Program) -> set[int]:
    """Values that a block reads and does not define."""
    free: set[int] = set()
    defined = set(program.inputs)
    for step in program.steps:
        free.update(number for number in (*step.inputs, *step.captured) if number not in defined)
        defined.update(step.outputs)
    free.update(number for number in program.outputs if number not in defined)
    return free


def _is_pure(node: ir.Node, op: str, values: Sequence[ir.Value]) -> bool:
    if op in _STRUCTURE or op in _STABLE_READS:
        return True
    if op in _RANDOM or not op.startswith(("aten::", "prim::")) or next(iter(node.blocks()), None) is not None:
        return False
    return bool(values) and not any(ir.may_hold_tensor(value) for value in (*values, *node.outputs()))


def _set_names(program: Program) -> Iterator[str]:
    steps = list(all_steps(program))
    readers = {step.outputs[0]: step for step in steps if step.op == "prim::GetAttr"}
    for step in steps:
        if step.op == "prim::SetAttr":
            yield ir.attribute_name(step.node)
        elif step.writes_container and step.inputs[0] in readers:
            yield ir.attribute_name(readers[step.inputs[0]].node)
