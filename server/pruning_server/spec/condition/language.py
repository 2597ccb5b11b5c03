"""Reads a condition with Python's own parser and keeps only what the language has; nothing is ever evaluated here.

The grammar is that of Python comparisons: `and`, `or`, `not`, chained comparisons, `+ - * / **`, `in` with a list of
texts, numbers, texts, features, and the functions below. Everything else is refused with its column.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from pruning_server.spec.condition import tree
from pruning_server.spec.condition.catalogue import FEATURES, FeatureLevel, Role
from pruning_server.spec.condition.errors import ConditionError
from pruning_server.spec.condition.lexer import check_words
from pruning_server.spec.condition.tree import Kind, Node, kind_of
from pruning_server.spec.request import Granularity

MAX_DEPTH = 100
FUNCTIONS: dict[str, tuple[int, int]] = {"abs": (1, 1), "log": (1, 1), "sqrt": (1, 1), "min": (2, 20), "max": (2, 20)}
"""Names with the fewest and the most numbers that they take."""

_ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_NAMES: dict[type[ast.AST], str] = {
    ast.List: "a list",
    ast.Tuple: "a list",
    ast.IfExp: "`if`",
    ast.Lambda: "`lambda`",
    ast.Subscript: "an index",
    ast.Starred: "`*` before a value",
    ast.ListComp: "`for`",
    ast.GeneratorExp: "`for`",
    ast.Await: "`await`",
    ast.Yield: "`yield`",
}


@dataclass(frozen=True)
class Condition:
    """A condition that has been read: its text and its tree, of kind TRUTH."""

    text: str
    tree: Node

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of their first mention."""
        return tuple(dict.fromkeys(feature.name for feature in tree.features_in(self.tree)))

    def uses(self, role: Role) -> bool:
        """Whether some feature has that role."""
        return any(FEATURES[name].role is role for name in self.features)


def parse_condition(text: str) -> Condition:
    """Reads a condition.

    Raises:
        ConditionError: it is not one; the column and the message say what to change.
    """
    check_words(text)
    start = len(text) - len(text.lstrip(" "))
    try:
        parsed = ast.parse(text[start:], mode="eval")
    except SyntaxError as error:
        # Where the end came too soon there is no line any more.
        inside = error.offset if error.lineno == 1 and error.offset else len(text) + 1
        column = min(start + max(1, inside), len(text) + 1)
        raise ConditionError("this is not a comparison that can be read", text, column) from None
    except (RecursionError, MemoryError, ValueError):
        raise ConditionError("this is nested too deeply", text, 1) from None
    reader = _Reader(text, start)
    found = reader.read(parsed.body, 0)
    reader.require(found, Kind.TRUTH, "the whole condition must be true or false; compare it, e.g. with < 0.1")
    return Condition(text, found)


def check_granularity(condition: Condition, granularity: Granularity) -> None:
    """Checks that the condition's features can decide over what is removed: coarser ones can, finer ones cannot.

    Raises:
        ConditionError: at the first feature that cannot.
    """
    for feature in tree.features_in(condition.tree):
        info = FEATURES[feature.name]
        if granularity is Granularity.WEIGHT:
            if info.role is not Role.PLAIN:
                raise ConditionError(
                    f"{info.name} decides over whole channels; ask for granularity channel",
                    condition.text,
                    feature.column,
                )
        elif info.level is FeatureLevel.WEIGHT:
            raise ConditionError(
                f"{info.name} has a value per weight, and whole {granularity.value}s are to go; ask for granularity weight,"
                " or use a feature of channels such as l1",
                condition.text,
                feature.column,
            )


def natural_granularity(text: str) -> Granularity:
    """What a condition decides over where the request does not say: channels if a feature is theirs, and none a weight's."""
    try:
        levels = {FEATURES[name].level for name in parse_condition(text).features}
    except ConditionError:
        return Granularity.WEIGHT
    only_channels = FeatureLevel.CHANNEL in levels and FeatureLevel.WEIGHT not in levels
    return Granularity.CHANNEL if only_channels else Granularity.WEIGHT


class _Reader:
    """Turns Python's tree into the language's. `start`: characters of the text before what Python has read."""

    def __init__(self, text: str, start: int) -> None:
        self._text = text
        self._start = start
        self._bytes = text[start:].encode()

    def read(self, node: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.error(node, "this is nested too deeply")
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._feature(node)
            case ast.Call():
                return self._call(node, depth)
            case ast.BinOp():
                return self._operation(node, depth)
            case ast.UnaryOp():
                return self._prefix(node, depth)
            case ast.BoolOp():
                return self._joined(node, depth)
            case ast.Compare():
                return self._compared(node, depth)
            case _:
                raise self.error(node, f"{_NAMES.get(type(node), 'this')} is not part of the language")

    def error(self, node: ast.expr, why: str) -> ConditionError:
        return ConditionError(why, self._text, self.column(node))

    def require(self, node: Node, kind: Kind, why: str) -> None:
        if kind_of(node) is not kind:
            raise ConditionError(f"this is {kind_of(node).value}; {why}", self._text, node.column)

    def column(self, node: ast.expr) -> int:
        # Python counts bytes.
        return self._start + len(self._bytes[: node.col_offset].decode(errors="ignore")) + 1

    # --- Values -------------------------------------------------------------------------------------------------------

    def _constant(self, node: ast.Constant) -> Node:
        value = node.value
        if isinstance(value, str):
            return tree.Text(value, self.column(node))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(node, f"{value!r} is not part of the language: a condition depends on the model")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(node, "this number is too large")
        return tree.Number(number, self.column(node))

    def _feature(self, node: ast.Name) -> Node:
        info = FEATURES.get(node.id)
        if info is None:
            raise self.error(node, _unknown("feature", node.id, tuple(FEATURES)))
        return tree.Feature(node.id, Kind.TEXT if info.is_text else Kind.NUMBER, self.column(node))

    def _call(self, node: ast.Call, depth: int) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in FEATURES:
            raise self.error(node, f"{name} is a feature and takes nothing; leave the parentheses out")
        if name not in FUNCTIONS:
            raise self.error(node, _unknown("function", name, tuple(FUNCTIONS)))
        fewest, most = FUNCTIONS[name]
        if node.keywords or not fewest <= len(node.args) <= most:
            wanted = "one number" if most == 1 else f"{fewest} to {most} numbers"
            raise self.error(node, f"{name} takes {wanted}")
        return tree.Call(name, tuple(self._number(one, depth) for one in node.args), self.column(node))

    def _operation(self, node: ast.BinOp, depth: int) -> Node:
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            raise self.error(node, "this operator is not part of the language")
        return tree.Call(operator, (self._number(node.left, depth), self._number(node.right, depth)), self.column(node))

    def _prefix(self, node: ast.UnaryOp, depth: int) -> Node:
        if isinstance(node.op, ast.Not):
            operand = self.read(node.operand, depth + 1)
            self.require(operand, Kind.TRUTH, "`not` needs a condition")
            return tree.Not(operand, self.column(node))
        if not isinstance(node.op, ast.USub | ast.UAdd):
            raise self.error(node, "this operator is not part of the language")
        value = self._number(node.operand, depth)
        return tree.Call("neg", (value,), self.column(node)) if isinstance(node.op, ast.USub) else value

    def _number(self, node: ast.expr, depth: int) -> Node:
        found = self.read(node, depth + 1)
        self.require(found, Kind.NUMBER, "a number is needed here")
        return found

    # --- Truth --------------------------------------------------------------------------------------------------------

    def _joined(self, node: ast.BoolOp, depth: int) -> Node:
        word = "and" if isinstance(node.op, ast.And) else "or"
        parts = tuple(self.read(one, depth + 1) for one in node.values)
        for part in parts:
            self.require(part, Kind.TRUTH, f"`{word}` joins conditions; compare it")
        column = self.column(node)
        return tree.All(parts, column) if word == "and" else tree.Any(parts, column)

    def _compared(self, node: ast.Compare, depth: int) -> Node:
        values = [node.left, *node.comparators]
        links = tuple(
            self._link(left, operator, right, depth)
            for left, operator, right in zip(values, node.ops, node.comparators, strict=False)
        )
        return links[0] if len(links) == 1 else tree.All(links, self.column(node))

    def _link(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, depth: int) -> Node:
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._membership(left, right, depth)
            return tree.Not(found, found.column) if isinstance(operator, ast.NotIn) else found
        symbol = _COMPARISONS.get(type(operator))
        if symbol is None:
            raise self.error(left, "compare with ==, !=, <, <=, >, >= or in; `is` is not part of the language")
        one, other = self.read(left, depth + 1), self.read(right, depth + 1)
        for side in (one, other):
            if kind_of(side) is Kind.TRUTH:
                raise ConditionError("conditions are joined with `and` and `or`, not compared", self._text, side.column)
        if kind_of(one) is not kind_of(other):
            why = f"{kind_of(one).value} and {kind_of(other).value} cannot be compared"
            raise ConditionError(why, self._text, one.column)
        if kind_of(one) is Kind.TEXT and symbol not in {"==", "!="}:
            raise ConditionError("texts are compared with ==, != or in", self._text, one.column)
        comparison = tree.Comparison(symbol, one, other, one.column)
        if not any(True for _ in tree.features_in(comparison)):
            raise ConditionError(
                "this comparison is the same for the whole model; name a feature", self._text, one.column
            )
        if isinstance(one, tree.Feature) and isinstance(other, tree.Text):
            self._check_choice(one.name, other.value, right)
        if isinstance(other, tree.Feature) and isinstance(one, tree.Text):
            self._check_choice(other.name, one.value, left)
        return comparison

    def _membership(self, left: ast.expr, right: ast.expr, depth: int) -> tree.Membership:
        feature = self.read(left, depth + 1)
        if not isinstance(feature, tree.Feature) or feature.kind is not Kind.TEXT:
            raise self.error(left, "`in` needs a feature that is a text before it, such as kind or name")
        if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
            raise self.error(right, '`in` needs a list of texts after it, e.g. ["conv", "linear"]')
        values = []
        for element in right.elts:
            if not isinstance(element, ast.Constant) or not isinstance(element.value, str):
                raise self.error(element, "a list holds texts only")
            self._check_choice(feature.name, element.value, element)
            values.append(element.value)
        return tree.Membership(feature, tuple(values), feature.column)

    def _check_choice(self, name: str, value: str, node: ast.expr) -> None:
        choices = FEATURES[name].choices
        if choices and value not in choices:
            raise self.error(node, f"{_unknown(name, value, choices)}; there are {', '.join(choices)}")


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    if not name:
        return "only functions can be called"
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    return f"there is no {what} {shown!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
