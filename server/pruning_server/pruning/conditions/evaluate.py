"""Evaluates a condition over tensors of feature values, all candidates at once.

What has no value (a feature that is not known here, a division by zero, the logarithm of 0) is NaN, and a comparison with
it is neither true nor false; `and`, `or` and `not` follow Kleene's logic. So nothing is removed for lack of knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pruning_server.spec.condition.tree import (
    All,
    Any,
    Call,
    Comparison,
    Feature,
    Membership,
    Node,
    Not,
    Number,
    Text,
)

Value: TypeAlias = torch.Tensor | str
Table: TypeAlias = Mapping[str, Value]
"""By feature: float64 tensors that broadcast against each other, and texts."""


@dataclass(frozen=True)
class Truth:
    """Where a condition is true and where it is false, bool tensors that broadcast; where neither, it is not known."""

    true: torch.Tensor
    false: torch.Tensor


_COMPARISONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "!=": torch.ne,
}
_FUNCTIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "**": torch.pow,
    "neg": torch.neg,
    "abs": torch.abs,
    "log": torch.log,
    "sqrt": torch.sqrt,
}


def evaluate(node: Node, table: Table) -> Truth:
    """Truth of a condition for every candidate.

    Args:
        node: of kind TRUTH.
        table: a value for every feature that the condition names.
    """
    match node:
        case Not(operand=operand):
            found = evaluate(operand, table)
            return Truth(found.false, found.true)
        case All(operands=parts):
            found = evaluate(parts[0], table)
            for part in parts[1:]:
                other = evaluate(part, table)
                found = Truth(found.true & other.true, found.false | other.false)
            return found
        case Any(operands=parts):
            found = evaluate(parts[0], table)
            for part in parts[1:]:
                other = evaluate(part, table)
                found = Truth(found.true | other.true, found.false & other.false)
            return found
        case Comparison(operator=operator, left=left, right=right):
            return _compare(operator, _value(left, table), _value(right, table))
        case Membership(feature=feature, values=values):
            return _certain(_value(feature, table) in values)
        case _:
            raise ValueError(f"not a condition: {node}")


def _compare(operator: str, one: Value, other: Value) -> Truth:
    if isinstance(one, str) or isinstance(other, str):
        return _certain((one == other) is (operator == "=="))
    known = ~(torch.isnan(one) | torch.isnan(other))
    holds = _COMPARISONS[operator](one, other)
    return Truth(known & holds, known & ~holds)


def _certain(holds: bool) -> Truth:
    return Truth(torch.tensor(holds), torch.tensor(not holds))


def _value(node: Node, table: Table) -> Value:
    match node:
        case Number(value=number):
            return torch.tensor(number, dtype=torch.float64)
        case Text(value=text):
            return text
        case Feature(name=name):
            return table[name]
        case Call(function=function, arguments=parts):
            values = [value for part in parts if isinstance(value := _value(part, table), torch.Tensor)]
            return _finite(_call(function, values))
        case _:
            raise ValueError(f"not a value: {node}")


def _call(function: str, values: list[torch.Tensor]) -> torch.Tensor:
    if function in {"min", "max"}:
        combine = torch.minimum if function == "min" else torch.maximum
        found = values[0]
        for value in values[1:]:
            found = combine(found, value)
        return found
    return _FUNCTIONS[function](*values)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isfinite(values), values, torch.nan)
