"""How many of a model's multiplications can be removed at all, and what holds the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from pruning_server.graph import ir
from pruning_server.graph.channels import Channels
from pruning_server.graph.coupling.record import Seen, Visit
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.coupling.values import AxisMap
from pruning_server.graph.macs import macs_of, may_multiply
from pruning_server.graph.values import NodeShapes

# Ops that are several products in one, each with a matrix of its own.
_SEVERAL = frozenset(
    {"lstm", "gru", "rnn_tanh", "rnn_relu", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"}
)


@dataclass(frozen=True)
class Shares:
    """Of the multiply-accumulates of one run.

    Attributes:
        frozen: the share that remains when every channel that can be removed is removed.
        reasons: what freezes it: op and reason, with the share of the run's multiply-accumulates that each holds; one
            product can be held by several.
    """

    frozen: float
    reasons: tuple[tuple[str, float], ...]


def share_out(tracer: Tracer, visits: Sequence[Visit], total_macs: int | None) -> Shares:
    """Adds up the products of one run.

    Args:
        tracer: finished.
        visits: those of one run. Branches that were not taken count too.
        total_macs: of that run; products without any labelled channel are frozen. None where it is not known.
    """
    counted, frozen = 0, 0.0
    held: Counter[str] = Counter()
    for visit in visits:
        for macs, seen in _products(visit):
            counted += macs
            kept, causes = _least([_kept(tracer.channels, one) for one in seen])
            frozen += macs * kept
            for cause in causes:
                held[cause] += round(macs * kept)
    if total_macs is not None and total_macs > counted:
        frozen += total_macs - counted
        held["no channels: products of inputs, or of tensors that depend on no weight's channel"] += (
            total_macs - counted
        )
        counted = total_macs
    if not counted:
        return Shares(1.0, ())
    top = [(reason, macs / counted) for reason, macs in held.most_common() if macs]
    return Shares(frozen / counted, tuple(top))


def _products(visit: Visit) -> Iterator[tuple[int, list[Seen]]]:
    """Multiply-accumulates, with the tensors of which each spans some of the axes that they run over."""
    if not may_multiply(visit.op):
        return
    total = macs_of(_shapes(visit)) or 0
    if visit.op.removeprefix("aten::") not in _SEVERAL:
        if total:
            yield total, list(_tensors((*visit.inputs, *visit.results)))
        return
    matrices = [one for one in _tensors(visit.inputs) if len(one.shape) == 2]
    # Every row of every matrix meets every token; what is left of the total are products of tokens.
    tokens = prod(next(_tensors(visit.inputs)).shape[:-1])
    for one in matrices:
        yield tokens * prod(one.shape), [one]
    rest = total - tokens * sum(prod(one.shape) for one in matrices)
    if rest > 0:
        yield rest, matrices[:1]


def _least(found: Sequence[tuple[float, set[str]]]) -> tuple[float, set[str]]:
    """The tensor of which least stays; where several are alike, any of them says why."""
    kept = min((share for share, _ in found), default=1.0)
    return kept, set[str]().union(*(causes for share, causes in found if share == kept))


def _kept(channels: Channels, seen: Seen) -> tuple[float, set[str]]:
    """Share of a tensor's entries that stay when all free channels go, and why."""
    kept, causes = 1.0, set[str]()
    for one in seen.maps:
        share, found = _kept_of(channels, one)
        kept, causes = kept * share, causes | found
    return kept, causes


def _kept_of(channels: Channels, one: AxisMap) -> tuple[float, set[str]]:
    roots = channels.roots(one.ids).ravel().tolist()
    stays = [root for root in roots if channels.is_frozen(root)]
    causes = {
        f"{cause.op.removeprefix('aten::') or 'model'}: {cause.reason}"
        for root in set(stays) if root >= 0 for cause in channels.causes(root) if not cause.expected
    }  # fmt: skip
    return len(stays) / len(roots), causes


def _tensors(values: object) -> Iterator[Seen]:
    if isinstance(values, Seen):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _shapes(visit: Visit) -> NodeShapes:
    inputs = {number: tuple(one.shape for one in _tensors(value)) for number, value in enumerate(visit.inputs)}
    results = {number: one.shape for number, one in enumerate(visit.results) if isinstance(one, Seen)}
    return NodeShapes(
        op=visit.op,
        source="",
        layer="",
        stored=(),
        arguments=tuple(argument.name for argument in ir.arguments_of(visit.node)),
        constants={n: value for n, value in enumerate(visit.inputs) if isinstance(value, str | bool | int)},
        inputs=({number: shapes for number, shapes in inputs.items() if shapes},),
        outputs=(results,),
    )
