"""Einstein sums: one letter is one axis of every operand that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.channels import Ids
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled, Maps, single


def einsum(call: Call) -> list[Any]:
    """Labels of a letter go together; letters missing from the result are summed."""
    operands = list(call["tensors"])
    left, arrow, right = str(call["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "..." in left or any(len(set(term)) != len(term) for term in terms):
        call.freeze(operands, "this kind of einsum is not followed")
        return [call.result(())]
    for letter in dict.fromkeys(left.replace(",", "")):
        if letter not in right:
            _decide_heads(call, operands, terms, letter)
    maps: Maps = ()
    for letter in dict.fromkeys(left.replace(",", "")):
        line = _unite(call, operands, terms, letter, summed=letter not in right)
        if line is not None and letter in right:
            maps += single(line, right.index(letter), len(right))
    return [call.result(maps)]


def _decide_heads(call: Call, operands: list[Labelled], terms: list[str], letter: str) -> None:
    """A summed axis of a split channel index, as of queries and keys, is united: whole heads stay together."""
    found = [
        (operand, term.index(letter), operand.map_at(term.index(letter)))
        for operand, term in zip(operands, terms, strict=True)
        if letter in term
    ]
    if all(one is None or len(one.axes) > 1 for _, _, one in found):
        for operand, axis, _ in found:
            call.hold(operand.maps, axis, "it is summed")


def _unite(call: Call, operands: list[Labelled], terms: list[str], letter: str, *, summed: bool) -> Ids | None:
    found: Ids | None = None
    stays = False
    for operand, term in zip(operands, terms, strict=True):
        if letter not in term or operand.shape[term.index(letter)] == 1:
            continue
        line = call.line(operand, term.index(letter), "an einsum goes over it")
        if line is None:
            stays = True
            continue
        if summed and operand.stored:
            call.channels.mark_consumer(line)
        if found is not None:
            call.channels.unite(found, line, call.cause("an einsum goes over both"))
        found = line
    if found is not None and stays:
        call.channels.freeze(found, call.cause("it meets an axis of another tensor that always stays"))
    return found


RULES: Mapping[str, Rule] = named("einsum", einsum)
