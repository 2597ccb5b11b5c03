"""Writes a gate into `forward`: first the core alone, then, for the samples it is not sure of, the whole model.

In the words of the code that results:

    if self.training: score, known = x, x; sure = False
    else:             score = core(x); known = margin(score) >= self.inference_gate_threshold; sure = all(known)
    if sure: return score
    if self.training: return whole(x)
    rows = nonzero(~known)
    return index_copy(score, 0, rows, whole(x[rows]))

`core` is the same code on the first part of every stored tensor: views, no copies. The margin is the difference of the two
largest scores. Cascades of a small and a large model: Park et al. 2015, "Big/Little Deep Neural Network"; networks within
networks that share weights: Yu et al. 2018, arXiv:1812.08928.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pruning_server.graph import ir, ir_edits
from pruning_server.graph.coupling.leaves import constant_name, enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.program import Method, all_steps
from pruning_server.graph.slots import dotted, find_places
from pruning_server.graph.structure import Structure
from pruning_server.graph.surgery.cut import AxisCut, Cut, Removal
from pruning_server.graph.surgery.editing import edit_code

THRESHOLD = "inference_gate_threshold"
TRAINING = "training"

# What must not happen twice.
_EFFECTS = frozenset(
    {"prim::SetAttr", "prim::CallMethod", "prim::CallFunction", "prim::PythonOp", "prim::fork", "aten::manual_seed"}
)


class NotGateableError(Exception):
    """A gate cannot be written into this code; the message says why."""


def is_gated(module: ir.Module) -> bool:
    """Whether the model's forward has a gate."""
    return ir.has_attribute(module, THRESHOLD)


def set_threshold(module: ir.Module, value: float) -> None:
    """Moves the gate of a gated model: `inf` computes everything for every sample, `-inf` the core alone."""
    ir.set_attribute(module, THRESHOLD, value)


def insert_gate(
    module: ir.Module, structure: Structure, core: Removal, threshold: float, batched: Collection[int]
) -> None:
    """Writes the gate into a load of the analysed archive, in place; save and load it before running it.

    Args:
        module: its channels in any order that `structure` describes.
        structure: from `analyse` on another load.
        core: what the core does without, from `find_core`.
        threshold: a sample whose margin is at least this is done after the core.
        batched: positions of forward's arguments (0 is the first after self) that hold samples along axis 0.

    Raises:
        NotGateableError: forward does what must not happen twice, gives something else than one tensor, or reads a
            weight in a way that cannot be narrowed.
    """
    narrowed = _core_graph(module, structure, core)
    graph = ir.inline_in_place(module, "forward")
    outputs, inputs = list(graph.outputs()), list(graph.inputs())
    if len(outputs) != 1 or not ir.is_tensor(outputs[0]):
        raise NotGateableError("forward gives something else than one tensor of scores")
    if not all(position + 1 < len(inputs) and ir.is_tensor(inputs[position + 1]) for position in batched):
        raise NotGateableError("an input of forward is no tensor by its type")
    if is_gated(module):
        raise NotGateableError("the model has a gate already")
    whole, old = graph.copy(), list(graph.nodes())
    ir.register_number(module, THRESHOLD, threshold)
    output = _Writer(graph, inputs, has_mode=ir.has_attribute(module, TRAINING)).write(narrowed, whole, batched)
    ir_edits.replace_body(graph, old, output)


class _Writer:
    """Writes at the end of a graph whose old nodes will go."""

    def __init__(self, graph: ir.Graph, inputs: list[ir.Value], *, has_mode: bool) -> None:
        self._graph = graph
        self._inputs = inputs
        self._has_mode = has_mode

    def write(self, core: ir.Graph, whole: ir.Graph, batched: Collection[int]) -> ir.Value:
        graph, end = self._graph, ir_edits.end_of(self._graph)
        score, known, sure = self._first(core, end, batched)
        branch, done, rest = ir_edits.insert_branch(graph, end, sure)
        del done  # gives the score as it is
        stop = ir_edits.end_of(rest)
        rows, inputs = self._chosen(known, stop, batched)
        (found,) = ir_edits.insert_graph(graph, stop, whole, inputs)
        return ir_edits.close_branch(branch, [score], [self._merged(score, rows, found, stop)])[0]

    def _first(self, core: ir.Graph, end: ir.Node, batched: Collection[int]) -> list[ir.Value]:
        """The core's scores, for which samples they will do, and whether for all."""
        graph = self._graph
        if not self._has_mode:
            return list(self._scored(core, end))
        branch, training, evaluation = ir_edits.insert_branch(graph, end, self._mode(end))
        stop = ir_edits.end_of(training)
        unused = self._inputs[min(batched) + 1]
        nothing = [unused, unused, ir_edits.insert_constant(graph, stop, False)]
        return ir_edits.close_branch(branch, nothing, self._scored(core, ir_edits.end_of(evaluation)))

    def _scored(self, core: ir.Graph, end: ir.Node) -> list[ir.Value]:
        graph = self._graph
        (score,) = ir_edits.insert_graph(graph, end, core, self._inputs)
        best = ir_edits.insert_largest_two(graph, end, score)
        last, first, second = (ir_edits.insert_constant(graph, end, number) for number in (-1, 0, 1))
        highest = ir_edits.insert_tensor_op(graph, end, "aten::select", [best, last, first])
        next_best = ir_edits.insert_tensor_op(graph, end, "aten::select", [best, last, second])
        margin = ir_edits.insert_tensor_op(graph, end, "aten::sub", [highest, next_best, second])
        threshold = ir_edits.insert_number_read(graph, end, THRESHOLD)
        known = ir_edits.insert_tensor_op(graph, end, "aten::ge", [margin, threshold])
        every = ir_edits.insert_tensor_op(graph, end, "aten::all", [known])
        return [score, known, ir_edits.insert_test(graph, end, "aten::Bool", [every])]

    def _chosen(self, known: ir.Value, end: ir.Node, batched: Collection[int]) -> tuple[ir.Value, list[ir.Value]]:
        """The rows that the core does not do, and forward's inputs for them; all of them in training mode."""
        graph, given = self._graph, [self._inputs[position + 1] for position in sorted(batched)]
        if not self._has_mode:
            values = self._rows(known, end, given)
        else:
            branch, _, evaluation = ir_edits.insert_branch(graph, end, self._mode(end))
            inner = self._rows(known, ir_edits.end_of(evaluation), given)
            values = ir_edits.close_branch(branch, [known, *given], inner)
        taken = dict(zip(sorted(batched), values[1:], strict=True))
        return values[0], [taken.get(place - 1, value) for place, value in enumerate(self._inputs)]

    def _rows(self, known: ir.Value, end: ir.Node, given: list[ir.Value]) -> list[ir.Value]:
        graph = self._graph
        unknown = ir_edits.insert_tensor_op(graph, end, "aten::logical_not", [known])
        places = ir_edits.insert_tensor_op(graph, end, "aten::nonzero", [unknown])
        rows = ir_edits.insert_tensor_op(graph, end, "aten::squeeze", [places, self._number(end, 1)])
        first = self._number(end, 0)
        return [rows, *(ir_edits.insert_tensor_op(graph, end, "aten::index_select", [x, first, rows]) for x in given)]

    def _merged(self, score: ir.Value, rows: ir.Value, found: ir.Value, end: ir.Node) -> ir.Value:
        graph = self._graph
        if not self._has_mode:
            return self._copied(score, rows, found, end)
        branch, _, evaluation = ir_edits.insert_branch(graph, end, self._mode(end))
        both = self._copied(score, rows, found, ir_edits.end_of(evaluation))
        return ir_edits.close_branch(branch, [found], [both])[0]

    def _copied(self, score: ir.Value, rows: ir.Value, found: ir.Value, end: ir.Node) -> ir.Value:
        return ir_edits.insert_tensor_op(
            self._graph, end, "aten::index_copy", [score, self._number(end, 0), rows, found]
        )

    def _mode(self, end: ir.Node) -> ir.Value:
        return ir_edits.insert_flag_read(self._graph, end, TRAINING)

    def _number(self, end: ir.Node, value: int) -> ir.Value:
        return ir_edits.insert_constant(self._graph, end, value)


# --- The core ---------------------------------------------------------------------------------------------------------


def _core_graph(module: ir.Module, structure: Structure, core: Removal) -> ir.Graph:
    """A copy of forward's graph that computes with the first part of every stored tensor, in evaluation mode."""
    methods = compile_methods(module)
    forward = methods["forward"]
    for step in all_steps(forward.program):
        if step.op == "prim::GetAttr" and ir.attribute_name(step.node) == TRAINING:
            ir_edits.pin_flag(forward.graph, step.node, value=False)
    reads = dict(_reads(module, methods, structure.cut(core)))
    edit_code(methods, structure.edits, structure.classes(core))
    for node, cuts in reads.items():
        values = [node.output()]
        for one in cuts:
            bounds = one.kept[0], one.kept[-1] + 1
            values = [new for old in values for new in ir_edits.narrow_uses(forward.graph, old, one.axis, *bounds)]
    ir_edits.simplify(forward.graph)
    twice = sorted({node.kind() for node in ir.walk(forward.graph)} & _EFFECTS)
    if twice:
        raise NotGateableError(f"forward contains {twice[0]}, which must not happen twice")
    return forward.graph


def _reads(module: ir.Module, methods: Mapping[str, Method], cut: Cut) -> Iterator[tuple[ir.Node, list[AxisCut]]]:
    """The nodes of forward that give a tensor of the cut, each with what it loses."""
    by_name: dict[str, list[AxisCut]] = {}
    for one in cut:
        for name in (one.tensor, *one.aliases):
            by_name.setdefault(name, []).append(one)
    forward = methods["forward"].program
    own = {id(step.node) for step in all_steps(forward)}
    for number, baked in enumerate(enumerate_constants(methods.values())):
        for node in baked.nodes if constant_name(number) in by_name else ():
            if id(node) in own:
                yield node, by_name[constant_name(number)]
    containers = {dotted(path): dotted(path[:-1]) for path in find_places(module).slots if len(path) > 1}
    held = {containers[name] for name in by_name if name in containers}
    paths: dict[int, tuple[str, ...]] = {forward.inputs[0]: ()}
    for step in all_steps(forward):
        if step.op != "prim::GetAttr" or step.inputs[0] not in paths:
            continue
        path = (*paths[step.inputs[0]], ir.attribute_name(step.node))
        paths[step.outputs[0]] = path
        if dotted(path) in by_name:
            yield step.node, by_name[dotted(path)]
        elif dotted(path) in held and ir.type_kind(step.node.output()) != "ClassType":
            raise NotGateableError(f"the weights in '{dotted(path)}' are read as a list")
