"""Multiply-accumulates of each op from the shapes that it saw. One line of the table per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod

from pruning_server.graph.rules import base_name
from pruning_server.graph.values import Macs, NodeShapes, Observation, Shape

_Inputs = Mapping[int, tuple[Shape, ...]]
_Rule = Callable[[NodeShapes, _Inputs, Mapping[int, Shape]], int]

# Prefixes of ops that multiply and have no rule: better no total than a wrong one.
_UNCOUNTED = (
    "aten::fft_",
    "aten::_fft",
    "aten::linalg_",
    "aten::chain_matmul",
    "aten::stft",
    "aten::istft",
    "aten::inverse",
    "aten::pinverse",
    "aten::matrix_exp",
    "aten::matrix_power",
    "aten::cholesky",
    "aten::svd",
    "aten::qr",
    "aten::lstsq",
    "aten::_trilinear",
    "aten::_sparse",
    "aten::sparse_",
    "aten::mkldnn_rnn_layer",
    "prim::CallMethod",
    "prim::CallFunction",
    "prim::PythonOp",
)
_FREE_LINALG = frozenset(
    {"aten::linalg_norm", "aten::linalg_vector_norm", "aten::linalg_cross", "aten::linalg_diagonal"}
)


def sum_macs(observation: Observation, batch_size: int) -> Macs:
    """Adds up what was observed on `batch_size` samples; per sample, rounded where samples share work."""
    total, by_layer, reason = 0, dict[str, int](), None
    for node in observation.nodes:
        if not node.inputs and not node.outputs:
            continue  # this run did not reach it
        counted = macs_of(node)
        if counted is None:
            reason = reason or f"the multiplications of {node.op} cannot be counted ({node.source or 'no source line'})"
            continue
        total += counted
        if counted and node.layer:
            by_layer[node.layer] = by_layer.get(node.layer, 0) + counted
    return Macs(
        total=None if reason else _per_sample(total, batch_size),
        by_layer={layer: _per_sample(count, batch_size) for layer, count in by_layer.items()},
        reason=reason,
    )


def may_multiply(op: str) -> bool:
    """Whether an op has a rule, or is one of those that multiply and have none."""
    return op in _RULES or base_name(op) in _RULES or _is_uncounted(op)


def macs_of(node: NodeShapes) -> int | None:
    """Multiply-accumulates of all executions of an op; 0 for ops without products, None where there is no rule."""
    rule = _RULES.get(node.op) or _RULES.get(base_name(node.op))
    if rule is None:
        return None if _is_uncounted(node.op) else 0
    try:
        return sum(rule(node, seen, given) for seen, given in zip(node.inputs, node.outputs, strict=True))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):  # shapes that the rule has no reading of
        return None


def _is_uncounted(op: str) -> bool:
    if not op.startswith(("aten::", "prim::")):
        return True
    return op.startswith(_UNCOUNTED) and op not in _FREE_LINALG


def _per_sample(count: int, batch_size: int) -> int:
    return (2 * count + batch_size) // (2 * batch_size)


def _tensor(seen: _Inputs, index: int) -> Shape:
    return seen[index][0]


def _convolution(node: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    weight = _tensor(seen, 1)
    if _is_transposed(node):
        return prod(_tensor(seen, 0)) * prod(weight[1:])
    return prod(given[0]) * prod(weight[1:])


def _is_transposed(node: NodeShapes) -> bool:
    if "transpose" in node.op:
        return True
    position = node.arguments.index("transposed") if "transposed" in node.arguments else -1
    return bool(node.constants.get(position, False))


def _time_convolution(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    return prod(given[0]) * prod(_tensor(seen, 1)[:2])


def _linear(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    return prod(given[0]) * _tensor(seen, 1)[-1]


def _product(first: int) -> _Rule:
    """Products that contract the last axis of their argument number `first`."""

    def rule(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
        return prod(given[0]) * _tensor(seen, first)[-1]

    return rule


def _summed_product(_: NodeShapes, seen: _Inputs, __: Mapping[int, Shape]) -> int:
    return prod(_tensor(seen, 1)) * _tensor(seen, 2)[-1]


def _outer(_: NodeShapes, __: _Inputs, given: Mapping[int, Shape]) -> int:
    return prod(given[0])


def _tensordot(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    result = prod(given[0])
    if not result:
        return 0
    # The contracted size, squared, is what both factors have more than the result.
    return result * isqrt(prod(_tensor(seen, 0)) * prod(_tensor(seen, 1)) // result)


def _bilinear(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    return prod(given[0]) * prod(_tensor(seen, 2)[1:])


def _distances(_: NodeShapes, seen: _Inputs, given: Mapping[int, Shape]) -> int:
    return prod(given[0]) * _tensor(seen, 0)[-1]


def _recurrent(node: NodeShapes, seen: _Inputs, _: Mapping[int, Shape]) -> int:
    matrices = [shape for shape in seen.get(node.arguments.index("params"), ()) if len(shape) == 2]
    if not matrices:
        matrices = [shape for _, shape in node.stored if len(shape) == 2]
    if not matrices:
        raise ValueError(node.op)
    steps = prod(_tensor(seen, 0)[:-1])
    return steps * sum(prod(shape) for shape in matrices)


def _cell(_: NodeShapes, seen: _Inputs, __: Mapping[int, Shape]) -> int:
    return prod(_tensor(seen, 0)[:-1]) * (prod(_tensor(seen, 2)) + prod(_tensor(seen, 3)))


def _attention(_: NodeShapes, seen: _Inputs, __: Mapping[int, Shape]) -> int:
    query, key, value = (_tensor(seen, index) for index in range(3))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _fused_attention(node: NodeShapes, seen: _Inputs, _: Mapping[int, Shape]) -> int:
    """Fused attention blocks: every matrix meets every token, and every token meets every token twice.

    The packed rows are those of queries, keys and values; the projection's columns are as many as the values.
    """
    weights = [shape for index, name in enumerate(node.arguments) if "weight" in name for shape in seen.get(index, ())]
    matrices = [shape for shape in weights if len(shape) == 2]
    if not matrices:
        raise ValueError(node.op)
    batch, length = _tensor(seen, 0)[:2]
    values = matrices[1][1]
    queries = (matrices[0][0] - values) // 2
    return batch * length * (sum(prod(shape) for shape in matrices) + length * (queries + values))


def _einsum(node: NodeShapes, seen: _Inputs, _: Mapping[int, Shape]) -> int:
    return einsum_macs(str(node.constants[0]), seen[1])


def einsum_macs(equation: str, shapes: Sequence[Shape]) -> int:
    """Multiply-accumulates of a contraction from left to right, as torch does without an optimizer.

    Raises:
        ValueError: the shapes do not fit the equation.
    """
    left, _, right = equation.replace(" ", "").partition("->")
    terms, sizes = _labelled(left.split(","), shapes)
    if "->" not in equation:
        letters = [letter for term in terms for letter in term]
        output = {letter for letter in letters if letters.count(letter) == 1 or not letter.isalpha()}
    else:
        output = set(right.replace("...", "")) | {letter for letter in sizes if not letter.isalpha()}
    total, current = 0, set(terms[0])
    for number, term in enumerate(terms[1:], start=1):
        both = current | set(term)
        total += prod(sizes[letter] for letter in both)
        later = {letter for rest in terms[number + 1 :] for letter in rest}
        current = both & (later | output)
    return total


def _labelled(terms: Sequence[str], shapes: Sequence[Shape]) -> tuple[list[list[str]], dict[str, int]]:
    """Letters per term, with digits for the axes of an ellipsis counted from its end, and the size of each."""
    sizes: dict[str, int] = {}
    labelled = []
    for term, shape in zip(terms, shapes, strict=True):
        missing = len(shape) - len(term.replace("...", ""))
        hidden = [str(axis) for axis in reversed(range(missing))] if "..." in term else []
        before, _, after = term.partition("...")
        letters = [*before, *hidden, *after]
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
        labelled.append(letters)
    return labelled, sizes


def _same(rule: _Rule, names: str) -> dict[str, _Rule]:
    return {f"aten::{name}": rule for name in names.split()}


_RULES: Mapping[str, _Rule] = {
    **_same(
        _convolution,
        """
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution convolution
        convolution_overrideable _convolution_mode mkldnn_convolution cudnn_convolution cudnn_convolution_transpose
        miopen_convolution thnn_conv2d slow_conv3d _conv_depthwise2d conv_depthwise3d slow_conv_transpose2d
        slow_conv_transpose3d
        """,
    ),
    **_same(_time_convolution, "conv_tbc"),
    **_same(_linear, "linear mkldnn_linear"),
    **_same(_product(0), "mm matmul bmm mv dot vdot inner linalg_matmul __matmul__ linalg_vecdot _grouped_mm"),
    **_same(_product(1), "addmm addmv baddbmm"),
    **_same(_summed_product, "addbmm"),
    **_same(_outer, "outer ger addr kron"),
    **_same(_tensordot, "tensordot"),
    **_same(_einsum, "einsum"),
    **_same(_bilinear, "bilinear"),
    **_same(_distances, "cdist"),
    **_same(_recurrent, "lstm gru rnn_tanh rnn_relu"),
    **_same(_cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    **_same(
        _attention,
        """
        scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention
        """,
    ),
    **_same(_fused_attention, "_native_multi_head_attention _transformer_encoder_layer_fwd"),
}
