"""Finds the rule of an op; two rules for one op are an error."""

from __future__ import annotations

from collections.abc import Mapping

from pruning_server.graph.coupling.calls import Rule


class Registry:
    """Rules of all families by op.

    Raises:
        ValueError: two families have a rule for the same op.
    """

    def __init__(self, *families: Mapping[str, Rule]) -> None:
        self._rules: dict[str, Rule] = {}
        for family in families:
            doubled = sorted(self._rules.keys() & family.keys())
            if doubled:
                raise ValueError(f"several families have a rule for {', '.join(doubled)}")
            self._rules.update(family)

    def find(self, op: str) -> Rule | None:
        """The op's rule; an in-place op without its own has that of the op that it is named after."""
        found = self._rules.get(op)
        if found is None and op.endswith("_") and not op.endswith("__"):
            found = self._rules.get(op[:-1])
        return found

    def ops(self) -> frozenset[str]:
        """Every op that has a rule."""
        return frozenset(self._rules)


def named(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for several ops, named without `aten::`."""
    return {f"aten::{name}": rule for name in names.split()}
