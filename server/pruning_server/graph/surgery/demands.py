"""What an op's numbers must be once channels are gone: one function per family of ops that bake sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from pruning_server.graph.channels import Ids
from pruning_server.graph.coupling.values import AxisMap, LabelledInt, map_at
from pruning_server.graph.surgery.seeing import Sight


class Collector(Protocol):
    """Takes what the families ask for."""

    def resize(self, sight: Sight, name: str, element: int | None, line: Ids | None) -> None:
        """The number must be what is left of the line; None: it must stay as it is."""
        ...

    def divide(self, sight: Sight, axis_name: str, lines: list[Ids | None]) -> None:
        """The results must have these lengths."""
        ...

    def rescale(self, sight: Sight, name: str, line: Ids) -> None:
        """The argument, which is missing, must be what it is by default for the whole line."""
        ...

    def unfuse(self, sight: Sight, heads: Ids | int, width: Ids | int, made: Ids | int, others: Sequence[Ids]) -> None:
        """A fused op must be written out where any of these lines, or numbers that stay, is cut."""
        ...

    def agree(self, sight: Sight, one: Any, other: Any, axis: int) -> None:
        """Both tensors' axes must lose the same."""
        ...

    def refuse(self, sight: Sight, reason: str) -> None:
        """Nothing may be removed of any tensor that the op sees."""
        ...


Demand: TypeAlias = Callable[[Sight, Collector], None]


def _sizes(name: str) -> Demand:
    """A list with the length of each axis of the result."""

    def demand(sight: Sight, collector: Collector) -> None:
        sizes = sight.argument(name)
        result = sight.result()
        if not isinstance(sizes, tuple) or result is None or len(sizes) != len(result.shape):
            return
        for axis, size in enumerate(sizes):
            if size != -1:
                collector.resize(sight, name, axis, sight.line(result, axis))

    return demand


def _unflatten(sight: Sight, collector: Collector) -> None:
    result, sizes = sight.result(), sight.argument("sizes")
    if result is None or not isinstance(sizes, tuple):
        return
    first = int(sight.argument("dim")) % (len(result.shape) - len(sizes) + 1)
    for number, size in enumerate(sizes):
        if size != -1:
            collector.resize(sight, "sizes", number, sight.line(result, first + number))


def _slice(sight: Sight, collector: Collector) -> None:
    source = sight.tensor("self")
    if source is None:
        return
    axis = int(sight.argument("dim")) % len(source.shape)
    line, size = sight.line(source, axis), source.shape[axis]
    if line is not None and sight.argument("step") != 1:
        collector.refuse(sight, "channels are picked in steps")
        return
    for name in ("start", "end"):
        bound, constant = sight.argument(name), sight.is_constant(name)
        if bound is None or bound == 0 or (constant and not -size < bound < size):
            continue  # it is beyond the ends, and stays there
        if bound < 0 and line is not None and not constant:
            collector.refuse(sight, "channels are counted from the end by a number that is computed")
            return
        inside = line if bound <= size else None
        collector.resize(sight, name, None, None if inside is None else inside[: bound % size if bound < 0 else bound])


def _narrow(sight: Sight, collector: Collector) -> None:
    source = sight.tensor("self")
    if source is None:
        return
    axis = int(sight.argument("dim")) % len(source.shape)
    line, start, length = sight.line(source, axis), sight.argument("start"), int(sight.argument("length"))
    if line is not None and (not isinstance(start, int) or start < 0):
        collector.refuse(sight, "channels are counted from the end, or from a place that a tensor names")
        return
    if isinstance(start, int):
        collector.resize(sight, "start", None, None if line is None else line[:start])
    collector.resize(sight, "length", None, None if line is None else line[start : start + length])


def _split(sight: Sight, collector: Collector) -> None:
    """Equal parts: of a given length, or a given number of them."""
    if isinstance(sight.argument("split_size"), tuple):
        _split_with_sizes(sight, collector)
        return
    lines = _result_lines(sight, "dim")
    if all(line is None for line in lines):
        if "split_size" in sight.names:
            collector.resize(sight, "split_size", None, None)
        return
    collector.divide(sight, "dim", lines)


def _split_with_sizes(sight: Sight, collector: Collector) -> None:
    name = "split_sizes" if "split_sizes" in sight.names else "split_size"
    for number, line in enumerate(_result_lines(sight, "dim")):
        collector.resize(sight, name, number, line)


def _result_lines(sight: Sight, axis_name: str) -> list[Ids | None]:
    parts = sight.results()
    return [sight.line(part, int(sight.argument(axis_name)) % len(part.shape)) for part in parts]


def _uneven_split(sight: Sight, collector: Collector) -> None:
    """Into a number of parts, or at given places: the code names no lengths, so that it gets them."""
    if "dim" in sight.names and isinstance(sight.argument("dim"), int):
        lines = _result_lines(sight, "dim")
        if any(line is not None for line in lines):
            collector.divide(sight, "dim", lines)
        return
    parts = sight.results()
    source = sight.tensor("self")
    if source is None or not parts:
        return
    changed = {axis for part in parts for axis in range(len(part.shape)) if part.shape[axis] != source.shape[axis]}
    if any(sight.line(source, axis) is not None for axis in changed):
        collector.refuse(sight, "channels are split in a way that is not followed")


def _pad(sight: Sight, collector: Collector) -> None:
    source, result, widths = sight.tensor("self"), sight.result(), sight.argument("pad")
    if source is None or result is None or not isinstance(widths, tuple):
        return
    for number in range(len(widths) // 2):
        axis = len(source.shape) - 1 - number
        before, after = int(widths[2 * number]), int(widths[2 * number + 1])
        line = sight.line(result, axis)
        if line is not None and min(before, after) < 0:
            collector.refuse(sight, "channels are cut off by a negative padding")
            return
        if before > 0:
            collector.resize(sight, "pad", 2 * number, None if line is None else line[:before])
        if after > 0:
            collector.resize(sight, "pad", 2 * number + 1, None if line is None else line[len(line) - after :])


def _convolution(sight: Sight, collector: Collector) -> None:
    groups, value, weight = int(sight.argument("groups")), sight.tensor("input"), sight.tensor("weight")
    if groups == 1 or value is None or weight is None:
        return
    axis = len(value.shape) - (len(weight.shape) - 2) - 1
    collector.resize(sight, "groups", None, _whole_groups(sight, sight.line(value, axis), groups))


def _group_norm(sight: Sight, collector: Collector) -> None:
    value = sight.tensor("input")
    name = "num_groups" if "num_groups" in sight.names else "group"
    if value is not None:
        groups = int(sight.argument(name))
        collector.resize(sight, name, None, _whole_groups(sight, sight.line(value, 1), groups))


def _whole_groups(sight: Sight, line: Ids | None, groups: int) -> Ids | None:
    """One element per group where whole groups can go; None where each of them only becomes narrower."""
    if line is None:
        return None
    rows = line.reshape(groups, -1)
    roots = sight.channels.roots(rows)
    return rows[:, 0] if groups > 1 and bool(np.any(roots != roots[:1])) else None


def _attention(sight: Sight, collector: Collector) -> None:
    """Without a scale, attention takes one over the root of the number of dimensions that it sees."""
    query = sight.tensor("query")
    if query is None or sight.argument("scale") is not None:
        return
    line = sight.line(query, len(query.shape) - 1)
    if line is not None:
        collector.rescale(sight, "scale", line)


def _fused_attention(sight: Sight, collector: Collector) -> None:
    heads = int(sight.argument("num_head") or sight.argument("num_heads"))
    weight, projection = sight.tensor("qkv_weight"), sight.tensor("proj_weight")
    rows = None if weight is None else map_at(weight.maps, 0)
    if weight is None or projection is None or rows is None:
        return
    queries, _, values = rows.ids.reshape(3, heads, -1)
    wide = queries.shape[1]
    others = (sight.line(weight, 1), sight.line(projection, 0))
    collector.unfuse(
        sight,
        _or_size(sight.line_of(AxisMap(queries), 0), heads),
        _or_size(sight.line_of(AxisMap(queries), 1), wide),
        _or_size(sight.line_of(AxisMap(values), 1), wide),
        [line for line in others if line is not None],
    )


def _or_size(line: Ids | None, size: int) -> Ids | int:
    return size if line is None else line


def _like_other(sight: Sight, collector: Collector) -> None:
    other, result = sight.tensor("other"), sight.result()
    if other is None or result is None:
        return
    for axis in range(len(result.shape)):
        collector.agree(sight, other, result, axis)


def own_line(number: LabelledInt, sight: Sight) -> Ids | None:
    """The line that a size was read off."""
    return sight.line_of(number.map, number.axis)


def _same(demand: Demand, names: str) -> dict[str, Demand]:
    return {f"aten::{name}": demand for name in names.split()}


DEMANDS: Mapping[str, Demand] = {
    **_same(_sizes("size"), "view _unsafe_view zeros ones full empty new_zeros new_ones new_full new_empty"),
    **_same(_sizes("size"), "expand broadcast_to"),
    **_same(_sizes("shape"), "reshape"),
    **_same(_unflatten, "unflatten"),
    **_same(_slice, "slice"),
    **_same(_narrow, "narrow"),
    **_same(_split, "chunk unsafe_chunk split unsafe_split"),
    **_same(_split_with_sizes, "split_with_sizes unsafe_split_with_sizes"),
    **_same(_uneven_split, "tensor_split hsplit vsplit dsplit"),
    **_same(_pad, "pad constant_pad_nd"),
    **_same(
        _convolution,
        """
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution _convolution_mode convolution
        """,
    ),
    **_same(_group_norm, "group_norm native_group_norm"),
    **_same(_attention, "scaled_dot_product_attention"),
    **_same(_fused_attention, "_native_multi_head_attention _transformer_encoder_layer_fwd"),
    **_same(_like_other, "view_as reshape_as expand_as"),
}
"""By op; what is not listed has no number that depends on channels, or freezes them."""
