"""Which weights a model's inputs meet first: what that says about their axes. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pruning_server.graph import ir
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.rules import base_name
from pruning_server.graph.slots import Path, find_places
from pruning_server.graph.values import Shape

_CONVOLUTIONS = frozenset(
    "_convolution convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()  # noqa: SIM905
)
_PRODUCTS = frozenset("linear addmm mm matmul".split())  # noqa: SIM905
_LOOKUPS = frozenset("embedding embedding_bag".split())  # noqa: SIM905
# Ops that need an axis of positions beside the features.
_MIXING = frozenset(
    "scaled_dot_product_attention bmm baddbmm _native_multi_head_attention _transformer_encoder_layer_fwd".split()  # noqa: SIM905
)
_RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())  # noqa: SIM905


@dataclass(frozen=True)
class FirstUse:
    """A weight that an input meets before any other weight.

    Attributes:
        op: `conv`, `linear`, `embedding` or `recurrent`.
        weight: the stored shape.
        channels: the channels, features or rows (of an embedding) that the op reads; several where it cannot be told.
        spatial_axes: of a convolution; 0 otherwise.
    """

    op: str
    weight: Shape
    channels: tuple[int, ...]
    spatial_axes: int = 0


def find_first_uses(module: ir.Module) -> tuple[tuple[FirstUse, ...], ...]:
    """Per argument of `forward` after self, the weights that it meets first, in the order of the code."""
    graph = ir.inlined_copy(module, "forward")
    places = find_places(module)
    findings = analyse(places, {"forward": graph})
    shapes = {path: tuple(slot.tensor.shape) for path, slot in places.slots.items()}
    weights = {number: _kernels(paths, shapes) for (_, number), paths in findings.weights_of_result.items() if paths}
    found = []
    for value in list(graph.inputs())[1:]:
        search = _Search(weights, {value.unique()})
        search.visit(graph)
        found.append(tuple(dict.fromkeys(search.uses)))
    return tuple(found)


def attends(module: ir.Module) -> bool:
    """Whether `forward` holds an op of attention, whose inputs are sequences."""
    return any(
        base_name(node.kind()).removeprefix("aten::") in _MIXING for node in ir.walk(ir.inlined_copy(module, "forward"))
    )


def _kernels(paths: tuple[Path, ...], shapes: Mapping[Path, Shape]) -> tuple[Shape, ...]:
    """The stored tensors with most axes (a bias has one); of a recurrent layer those that meet its input come first."""
    rank = max(len(shapes[path]) for path in paths)
    order = sorted(paths, key=lambda path: "_ih" not in path[-1])
    return tuple(dict.fromkeys(shapes[path] for path in order if len(shapes[path]) == rank))


@dataclass
class _Search:
    """Follows one input: `carried` holds the numbers of the values that it reaches without passing a weight."""

    weights: Mapping[int, tuple[Shape, ...]]
    carried: set[int]
    uses: list[FirstUse] = field(default_factory=list)

    def visit(self, block: ir.Block) -> None:
        """Goes through a block in program order."""
        for node in block.nodes():
            inner = list(node.blocks())
            if inner:
                self._enter(node, inner)
            elif any(value.unique() in self.carried for value in node.inputs()):
                self._pass(node)

    def _enter(self, node: ir.Node, blocks: list[ir.Block]) -> None:
        for block in blocks:
            if node.kind() == "prim::Loop":
                self._link(list(node.inputs())[2:], list(block.inputs())[1:])
            self.visit(block)
            outputs = list(block.outputs())
            self._link(outputs[1:] if node.kind() == "prim::Loop" else outputs, list(node.outputs()))

    def _link(self, sources: list[ir.Value], targets: list[ir.Value]) -> None:
        for source, target in zip(sources, targets, strict=False):
            if source.unique() in self.carried:
                self.carried.add(target.unique())

    def _pass(self, node: ir.Node) -> None:
        outputs = list(node.outputs())
        use = _use(node, self.weights.get(outputs[0].unique(), ())) if outputs else None
        if use is not None:
            self.uses.append(use)
            return
        # Sizes that are read off a tensor are no tensor any more.
        self.carried.update(value.unique() for value in outputs if ir.may_hold_tensor(value))


def _use(node: ir.Node, kernels: tuple[Shape, ...]) -> FirstUse | None:
    weight = kernels[0] if kernels else ()
    op = base_name(node.kind()).removeprefix("aten::")
    if op in _CONVOLUTIONS and len(weight) > 2:
        settings = _constants(node)
        transposed = "transpose" in op or bool(settings.get("transposed", False))
        groups = settings.get("groups", 1)
        channels = weight[0] if transposed else weight[1] * (groups if isinstance(groups, int) else 1)
        return FirstUse("conv", weight, (channels,), len(weight) - 2)
    if op in _PRODUCTS and len(weight) == 2:
        features = (weight[1],) if op == "linear" else (weight[1], weight[0])
        return FirstUse("linear", weight, tuple(dict.fromkeys(features)))
    if op in _LOOKUPS and len(weight) == 2:
        return FirstUse("embedding", weight, (weight[0],))
    if op in _RECURRENT and len(weight) == 2:
        return FirstUse("recurrent", weight, tuple(dict.fromkeys(kernel[1] for kernel in kernels)))
    return None


def _constants(node: ir.Node) -> dict[str, object]:
    found = {}
    for argument, value in zip(ir.arguments_of(node), node.inputs(), strict=False):
        known, content = ir.constant_of(value)
        if known:
            found[argument.name] = content
    return found
