"""About how far a model can be pruned, by quick candidates on select: only to place those that are made with care."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruning_server.evaluation.drop import DropBound, chosen_rung, search
from pruning_server.spec.request import StaticStrategy, Target
from pruning_server.worker.planning.candidates import (
    judge_candidate,
    judge_original,
    plan_candidate,
    prune_candidate,
    recover_candidate,
)
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.planning.trials import quickly


def find_reach(context: Planning, strategy: StaticStrategy, rungs: Sequence[Target], max_loss: float) -> int | None:
    """The most pruned rung that seems to lose at most `max_loss` on select, recovered in closed form.

    An estimate: nothing may rest on it but where candidates are. None where even the first seems to lose more.
    """
    observed = context.observed
    rows = observed.splits.select
    original = judge_original(observed, rows, context.reference).metric
    quick = quickly(context.spec)

    def estimate(rung: int) -> DropBound | None:
        plan = plan_candidate(context, strategy, rungs[rung])
        if plan is None:
            return None
        pruned = prune_candidate(context, plan, "trial")
        trained = recover_candidate(context, pruned, quick, 0.0, 0.0)
        losses = original - judge_candidate(context, pruned, trained, rows).metric
        known = np.where(np.isfinite(losses), losses, np.inf)
        loss = float(known.mean())
        return DropBound(loss, float(losses.std()), loss, len(rows), "estimate")

    return chosen_rung(search(len(rungs), estimate, max_loss))
