"""Which operators a loaded module can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pruning_server.graph import ir

# Calls of methods that are only known when they run, through an interface.
_CALL = "prim::CallMethod"


def kinds_used(module: torch.jit.ScriptModule) -> dict[str, str]:
    """Kinds of all nodes of all methods, such as `aten::relu`, each with where one of them stands in the code.

    What methods of the root call is followed. Where a call cannot be, through an interface, it may reach any class: then
    everything that the archive defines is looked at, too.
    """
    found: dict[str, str] = {}
    _add(_nodes(module), found)
    if _CALL in found:
        for graph in ir.defined_graphs(module):
            _add(ir.walk(graph), found)
    return found


def _add(nodes: Iterator[Any], found: dict[str, str]) -> None:
    for node in nodes:
        kind = node.kind()
        if kind not in found:
            found[kind] = ir.source_of(node)


def _nodes(module: Any) -> Iterator[Any]:
    for method in ir.method_names(module):
        graph = ir.method_graph(module, method)
        if graph is not None:
            yield from ir.walk(graph)
