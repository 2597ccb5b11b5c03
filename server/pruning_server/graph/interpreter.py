"""Runs the graphs of a module abstractly, from the methods' inputs to every block of every If and Loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pruning_server.graph import ir, rules
from pruning_server.graph.effects import Call, Effects
from pruning_server.graph.flow import NOTHING, Findings, Flow, Site, join, read_place
from pruning_server.graph.slots import Path, Places

_MAX_ROUNDS = 32
_MAX_DEPTH = 32

Environment = dict[int, Flow]


def analyse(
    places: Places,
    graphs: Mapping[str, ir.Graph],
    constant_path: Callable[[ir.Node], Path | None] = lambda _: None,
) -> Findings:
    """Follows every stored tensor through the inlined graphs of the root's methods.

    What one method writes is state for all of them, so the analysis is repeated until it meets no further write.
    `constant_path` names constants of the graph that are to be followed as if they were stored.
    """
    written: dict[Path, Site] = {}
    while True:
        findings = Findings()
        for method, graph in graphs.items():
            _Interpreter(places, frozenset(written), findings, constant_path).run(method, graph)
        # A slot known as state is followed no longer, so that later rounds do not meet its writes again.
        met = {path: site for path, site in findings.written.items() if path not in written}
        written |= met
        if not met:
            findings.written = written
            return findings


class _Interpreter:
    def __init__(
        self,
        places: Places,
        written: frozenset[Path],
        findings: Findings,
        constant_path: Callable[[ir.Node], Path | None],
        depth: int = 0,
    ) -> None:
        self._places = places
        self._written = written
        self._findings = findings
        self._constant_path = constant_path
        self._depth = depth
        self._effects = Effects(places.slots, findings)
        self._environment: Environment = {}
        self._method: str | None = None
        self._structural: dict[str, Callable[[ir.Node], None]] = {
            "prim::Constant": self._constant,
            "prim::GetAttr": self._get_attribute,
            "prim::SetAttr": self._set_attribute,
            "prim::If": self._if,
            "prim::Loop": self._loop,
            "prim::ListConstruct": self._construct,
            "prim::TupleConstruct": self._construct,
            "prim::DictConstruct": self._construct_dict,
            "prim::ListUnpack": self._unpack,
            "prim::TupleUnpack": self._unpack,
            "prim::TupleIndex": self._item,
            "aten::__getitem__": self._item,
            "prim::TupleSlice": self._whole,
            "aten::values": self._whole,
            "aten::items": self._whole,
            "aten::list": self._whole,
            "aten::dict": self._whole,
            "aten::pop": self._whole,
            "aten::get": self._whole,
            "aten::setdefault": self._whole,
            "aten::reverse": self._whole,
            "prim::CallMethod": self._call_method,
        }

    def run(self, method: str, graph: ir.Graph) -> None:
        """A method of the root, as a caller calls it."""
        self._method = method
        values = list(graph.inputs())
        self._set(values[0], Flow(objects=frozenset({()})))
        for value in values[1:]:
            self._set(value, Flow(active=ir.may_hold_tensor(value)))
        self._block(graph)

    def call(self, graph: ir.Graph, args: Sequence[Flow]) -> Flow:
        """A method that another one calls through an interface."""
        for value, flow in zip(graph.inputs(), args, strict=False):
            self._set(value, flow)
        self._block(graph)
        return join([self._get(value) for value in graph.outputs()])

    # --- Values -------------------------------------------------------------------------------------------------------

    def _get(self, value: ir.Value) -> Flow:
        return self._environment.get(value.unique(), NOTHING)

    def _set(self, value: ir.Value, flow: Flow) -> None:
        if self._environment.get(value.unique()) != flow:
            self._environment[value.unique()] = flow

    def _grow(self, value: ir.Value, flow: Flow) -> None:
        """Joins into what is known already, so that repeated blocks settle."""
        known = self._environment.get(value.unique())
        self._set(value, flow if known is None else join([known, flow]))

    def _all(self, node: ir.Node, flow: Flow) -> None:
        for value in node.outputs():
            self._set(value, flow)

    # --- Structure ----------------------------------------------------------------------------------------------------

    def _block(self, block: ir.Block) -> None:
        for node in block.nodes():
            handler = self._structural.get(node.kind())
            if handler is not None:
                handler(node)
            elif self._is_container_change(node):
                self._change_container(node)
            else:
                self._operate(node)

    def _constant(self, node: ir.Node) -> None:
        path = self._constant_path(node)
        self._all(node, Flow(stored=frozenset({path})) if path is not None else NOTHING)

    def _get_attribute(self, node: ir.Node) -> None:
        name = node.s("name")
        owner = self._get(node.input())
        flows = [read_place(self._places, self._written, (*path, name)) for path in sorted(owner.objects)]
        self._all(node, join(flows) if flows else Flow(active=owner.active))

    def _set_attribute(self, node: ir.Node) -> None:
        owner = self._get(next(iter(node.inputs())))
        for path in owner.objects:
            self._findings.written.setdefault((*path, node.s("name")), self._site(node))

    def _if(self, node: ir.Node) -> None:
        blocks = list(node.blocks())
        for block in blocks:
            self._block(block)
        for number, value in enumerate(node.outputs()):
            self._set(value, join([self._get(list(block.outputs())[number]) for block in blocks]))

    def _loop(self, node: ir.Node) -> None:
        (body,) = node.blocks()
        carried = [self._get(value) for value in list(node.inputs())[2:]]
        inputs, outputs = list(body.inputs())[1:], list(body.outputs())[1:]
        for value, flow in zip(inputs, carried, strict=True):
            self._grow(value, flow)
        for _ in range(_MAX_ROUNDS):
            before = dict(self._environment)
            self._block(body)
            for value, result in zip(inputs, outputs, strict=True):
                self._grow(value, self._get(result))
            if self._environment == before:
                break
        for value, start, result in zip(node.outputs(), carried, outputs, strict=True):
            self._set(value, join([start, self._get(result)]))

    def _construct(self, node: ir.Node) -> None:
        self._all(node, Flow(entries=tuple((number, self._get(value)) for number, value in enumerate(node.inputs()))))

    def _construct_dict(self, node: ir.Node) -> None:
        values = list(node.inputs())
        pairs = zip(values[::2], values[1::2], strict=True)
        self._all(node, Flow(entries=tuple((ir.constant_of(key)[1], self._get(value)) for key, value in pairs)))

    def _unpack(self, node: ir.Node) -> None:
        container = self._get(node.input())
        for number, value in enumerate(node.outputs()):
            self._set(value, container.at(number))

    def _item(self, node: ir.Node) -> None:
        container, key_value = list(node.inputs())[:2]
        flow = self._get(container)
        _, key = ir.constant_of(key_value)
        if isinstance(key, int) and key < 0:
            known = flow.entries or ()
            fixed = all(isinstance(one, int) for one, _ in known)
            key = len(known) + key if fixed else None
        self._all(node, flow.at(key))

    def _whole(self, node: ir.Node) -> None:
        flow = self._get(next(iter(node.inputs())))
        self._note_writes(node, [self._get(value) for value in node.inputs()])
        self._all(node, flow.merged())

    def _call_method(self, node: ir.Node) -> None:
        args = [self._get(value) for value in node.inputs()]
        results = []
        for path in sorted(args[0].objects):
            module = self._places.modules.get(path)
            graph = None if module is None else ir.method_graph(module, node.s("name"))
            if graph is None or self._depth >= _MAX_DEPTH:
                continue
            callee = _Interpreter(self._places, self._written, self._findings, self._constant_path, self._depth + 1)
            results.append(callee.call(graph, [Flow(objects=frozenset({path})), *args[1:]]))
        if results:
            self._all(node, join(results))
        else:
            self._operate(node)

    # --- Containers that change -----------------------------------------------------------------------------------------

    def _is_container_change(self, node: ir.Node) -> bool:
        values = list(node.inputs())
        arguments = ir.arguments_of(node) if values and node.kind().startswith("aten::") else ()
        return bool(arguments) and arguments[0].written and not ir.is_tensor(values[0])

    def _change_container(self, node: ir.Node) -> None:
        values = list(node.inputs())
        flows = [self._get(value) for value in values]
        self._note_writes(node, flows)
        added = join([flow.merged() for flow in flows[1:] if flow != NOTHING])
        container = flows[0]
        if node.kind() == "aten::append":
            # All appended elements share one unknown key, so that a loop that appends comes to rest.
            known = [(key, inner) for key, inner in container.entries or () if key is not None]
            appended = join([added, *(inner for key, inner in container.entries or () if key is None)])
            changed = replace(container, entries=(*known, (None, appended)))
        else:
            changed = replace(container, entries=((None, join([container.merged(), added])),))
        self._set(values[0], changed)
        self._all(node, changed)

    # --- Everything else ------------------------------------------------------------------------------------------------

    def _operate(self, node: ir.Node) -> None:
        values = list(node.inputs())
        call = self._as_call(node, values)
        self._note_writes(node, call.args)
        result = self._effects.apply(call)
        self._note_weights(node, call)
        for value in node.outputs():
            # Numbers made from a tensor are not followed: whatever they are, they scale or shape.
            self._set(value, result if ir.may_hold_tensor(value) else NOTHING)
        arguments = ir.arguments_of(node)
        if values and arguments and arguments[0].written:
            self._set(values[0], replace(result, fresh=call.args[0].fresh))

    def _as_call(self, node: ir.Node, values: Sequence[ir.Value]) -> Call:
        constants = {}
        for index, value in enumerate(values):
            known, content = ir.constant_of(value)
            if known:
                constants[index] = content
        return Call(
            op=node.kind(),
            site=self._site(node),
            names=tuple(argument.name for argument in ir.arguments_of(node)),
            args=tuple(self._get(value) for value in values),
            constants=constants,
            tensors=frozenset(i for i, value in enumerate(values) if ir.is_tensor(value)),
            lists=frozenset(i for i, value in enumerate(values) if ir.type_kind(value) == "ListType"),
            gives_tensor=any(ir.is_tensor(value) for value in node.outputs()),
        )

    def _note_writes(self, node: ir.Node, flows: Sequence[Flow]) -> None:
        for argument, flow in zip(ir.arguments_of(node), flows, strict=False):
            if not argument.written:
                continue
            elements = frozenset[Path]() if flow.fresh else flow.stored
            if node.kind() in rules.RESCALES_IN_PLACE:
                self._findings.rescaled |= elements
                continue
            for path in elements | flow.origin:
                self._findings.written.setdefault(path, self._site(node))

    def _note_weights(self, node: ir.Node, call: Call) -> None:
        outputs = list(node.outputs())
        if self._method is None or not outputs:
            return
        paths = tuple(sorted(set().union(*(flow.carried for flow in call.args))))
        if paths:
            self._findings.weights_of_result[self._method, outputs[0].unique()] = paths

    def _site(self, node: ir.Node) -> Site:
        return Site(node.kind(), ir.source_of(node))
