"""Ladders of targets, from the least to the most pruned, for whoever searches how far a model can be pruned."""

from __future__ import annotations

from pruning_server.spec.request import Granularity, Target, TargetKind

SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.88, 0.91, 0.94, 0.96, 0.98)
RATIOS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25)

# Gradient steps win back more than the closed forms that place the window, so that it reaches further up.
BELOW, ABOVE = 2, 4


def rungs_of(granularity: Granularity, *, macs_known: bool) -> tuple[Target, ...]:
    """15 targets: sparsities of single weights, ratios of MACs (else of parameters) of channels and heads.

    They are fixed: nothing about the caller's data moves them.
    """
    if granularity is Granularity.WEIGHT:
        return tuple(Target(kind=TargetKind.SPARSITY, value=value) for value in SPARSITIES)
    kind = TargetKind.MACS_RATIO if macs_known else TargetKind.PARAMETER_RATIO
    return tuple(Target(kind=kind, value=value) for value in RATIOS)


def window_around(rung: int | None, rungs: int) -> tuple[int, ...]:
    """Up to 8 rungs worth making well, ascending, if `rung` is about how far one can go (None: not even to the first).

    The first is always among them: it is what remains where the others turn out too much.
    """
    middle = -1 if rung is None else rung
    return tuple(sorted({0, *range(max(0, middle - BELOW), min(rungs, middle + ABOVE + 1))}))
