"""Runs a model with labels on every axis, in every method that can be run, and plans the edits of its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pruning_server.graph import ir
from pruning_server.graph.channels import Cause
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.program import Method
from pruning_server.graph.surgery.edits import Edit
from pruning_server.graph.surgery.planning import plan_edits

_ATTEMPTS = 2

Samples: TypeAlias = Mapping[str, Sequence[Sequence[object]]]
"""By method, the inputs of each run."""


@dataclass(frozen=True)
class Traced:
    """What running the model with labels left; `visited` counts the visits of the first run of `forward`."""

    tracer: Tracer
    methods: Mapping[str, Method]
    run: tuple[str, ...]
    visited: int
    edits: tuple[Edit, ...]


def trace_module(module: torch.jit.ScriptModule, samples: Samples, *, head_dims: bool = False) -> Traced:
    """Runs the samples; methods without any are run with those of `forward` or without arguments, where they take them.

    With `head_dims`, attention may lose dimensions inside heads. Where some of them turn out to stay, its heads go as a
    whole after all, for which everything is run once more; where that is not the end of it, all heads do.

    Raises as `Tracer.trace` does, for the methods that have samples.
    """
    methods = compile_methods(module)
    whole: frozenset[int] = frozenset()
    for _ in range(_ATTEMPTS if head_dims else 0):
        traced = _trace(module, samples, methods, Tracer(module, methods, head_dims=True, whole_heads=whole))
        choices = traced.tracer.channels.choices
        missed = choices.missed() if choices is not None else frozenset()
        if not missed:
            return traced
        whole |= missed
    return _trace(module, samples, methods, Tracer(module, methods))


def _trace(module: torch.jit.ScriptModule, samples: Samples, methods: Mapping[str, Method], tracer: Tracer) -> Traced:
    visited = 0
    for inputs in samples.get("forward", ()):
        tracer.trace("forward", inputs)
        visited = visited or len(tracer.visits)
    run = ["forward"] if "forward" in samples else []
    for name, runs in samples.items():
        for inputs in runs if name != "forward" else ():
            tracer.trace(name, inputs)
        run += [name] if name != "forward" else []
    run += _explore(module, tracer, methods, samples)
    tracer.finish()
    edits = plan_edits(tracer, methods)
    # Freezing during planning may have closed the last way out of an axis.
    tracer.leaves.freeze_indivisible()
    return Traced(tracer, methods, tuple(run), visited, edits)


def _explore(
    module: torch.jit.ScriptModule, tracer: Tracer, methods: Mapping[str, Method], samples: Samples
) -> list[str]:
    """Runs the methods that nobody sent samples for; what those that do not run may use is frozen."""
    found = []
    for name in methods:
        if name in samples:
            continue
        if _ran(tracer, name, ir.argument_count(module, name), samples.get("forward", ())):
            found.append(name)
        else:
            cause = Cause("", "", f"method '{name}' uses it and could not be run; send samples for it")
            tracer.freeze_method(name, cause)
    return found


def _ran(tracer: Tracer, name: str, arguments: int, runs: Sequence[Sequence[object]]) -> bool:
    attempts: Sequence[Sequence[object]] = runs if arguments else ((),)
    if not attempts:
        return False
    try:
        for inputs in attempts:
            tracer.trace(name, inputs)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    return True
