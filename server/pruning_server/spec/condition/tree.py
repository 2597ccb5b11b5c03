"""A condition as a tree of values, each with the column where it starts."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


class Kind(enum.Enum):
    """What a part of a condition is; the value is how messages call it."""

    NUMBER = "a number"
    TEXT = "a text"
    TRUTH = "a condition"


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float
    column: int


@dataclass(frozen=True)
class Text:
    """A constant."""

    value: str
    column: int


@dataclass(frozen=True)
class Feature:
    """A feature by its name; `kind` NUMBER or TEXT."""

    name: str
    kind: Kind
    column: int


@dataclass(frozen=True)
class Call:
    """A function of numbers: an operator (`+`, `-`, `*`, `/`, `**`, `neg`) or a name (`abs`, `min`, ...)."""

    function: str
    arguments: tuple[Node, ...]
    column: int


@dataclass(frozen=True)
class Comparison:
    """`left operator right`: numbers with any of < <= > >= == !=, texts with == and !=."""

    operator: str
    left: Node
    right: Node
    column: int


@dataclass(frozen=True)
class Membership:
    """`feature in [texts]`."""

    feature: Feature
    values: tuple[str, ...]
    column: int


@dataclass(frozen=True)
class Not:
    """True where its operand is false."""

    operand: Node
    column: int


@dataclass(frozen=True)
class All:
    """True where every operand is: `and`, and the links of a chained comparison."""

    operands: tuple[Node, ...]
    column: int


@dataclass(frozen=True)
class Any:
    """True where some operand is: `or`."""

    operands: tuple[Node, ...]
    column: int


Node: TypeAlias = Number | Text | Feature | Call | Comparison | Membership | Not | All | Any


def kind_of(node: Node) -> Kind:
    """What the part is."""
    match node:
        case Number() | Call():
            return Kind.NUMBER
        case Text():
            return Kind.TEXT
        case Feature(kind=kind):
            return kind
        case _:
            return Kind.TRUTH


def features_in(node: Node) -> Iterator[Feature]:
    """Every mention of a feature, in the order of the text."""
    match node:
        case Feature():
            yield node
        case Call(arguments=parts) | All(operands=parts) | Any(operands=parts):
            for part in parts:
                yield from features_in(part)
        case Comparison(left=left, right=right):
            yield from features_in(left)
            yield from features_in(right)
        case Membership(feature=feature):
            yield feature
        case Not(operand=operand):
            yield from features_in(operand)
        case Number() | Text():
            return


def comparisons_in(node: Node) -> Iterator[Comparison | Membership]:
    """Every comparison, in the order of the text."""
    match node:
        case Comparison() | Membership():
            yield node
        case All(operands=parts) | Any(operands=parts):
            for part in parts:
                yield from comparisons_in(part)
        case Not(operand=operand):
            yield from comparisons_in(operand)
        case _:
            return


def render(node: Node) -> str:
    """The part as text, with parentheses wherever they could matter; reading it gives the same tree."""
    match node:
        case Comparison(operator=operator, left=left, right=right):
            return f"{_value(left)} {operator} {_value(right)}"
        case Membership(feature=feature, values=values):
            return f"{feature.name} in [{', '.join(map(_quoted, values))}]"
        case Not(operand=operand):
            return f"(not ({render(operand)}))"
        case All(operands=parts):
            return " and ".join(f"({render(part)})" for part in parts)
        case Any(operands=parts):
            return " or ".join(f"({render(part)})" for part in parts)
        case _:
            return _value(node)


def _value(node: Node) -> str:
    match node:
        case Number(value=value):
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case Text(value=value):
            return _quoted(value)
        case Feature(name=name):
            return name
        case Call(function="neg", arguments=(part,)):
            return f"(-{_value(part)})"
        case Call(function=function, arguments=parts) if function.isalpha():
            return f"{function}({', '.join(map(_value, parts))})"
        case Call(function=function, arguments=(left, right)):
            return f"({_value(left)} {function} {_value(right)})"
        case _:
            raise ValueError(f"not a value: {node}")


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'
