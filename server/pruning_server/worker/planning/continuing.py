"""Going on from an earlier job: its values over the original model, what it removed switched off, and free to come back."""

from __future__ import annotations

from dataclasses import replace

import torch

from pruning_server.pruning.dynamic.channels import ChannelUnits
from pruning_server.pruning.dynamic.units import Reach
from pruning_server.pruning.dynamic.weights import WeightUnits
from pruning_server.pruning.schedules import Timing, rigl
from pruning_server.spec.request import DynamicStrategy, Target, TargetKind
from pruning_server.worker.earlier import Earlier
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.planning.dynamic_school import School
from pruning_server.worker.planning.dynamic_units import Bench

# Of what a schedule exchanges in a model that is pruned for the first time. With all of it, continuing was worse than
# pruning afresh on dimmed digits, with a tenth better.
EXCHANGED = 0.1
# Further beyond the target than whole channels and their multiples explain.
_WORTH_A_NOTE = 0.02


def default_schedule(strategy: DynamicStrategy, earlier: Earlier | None) -> str | None:
    """The schedule where the request names none: one under which what was removed can come back; None: the usual one."""
    if earlier is None or strategy.granularity not in rigl.SCHEDULE.granularities:
        return None
    return rigl.SCHEDULE.name


def gentler(timing: Timing) -> Timing:
    """The schedule for a model that has been pruned and recovered before: a tenth of what would be exchanged is."""
    return replace(timing, exchanged=lambda progress: EXCHANGED * timing.exchanged(progress))


def start_from(earlier: Earlier, school: School) -> None:
    """Writes the earlier model's values into the copy that is trained, the original's where nothing is left of them."""
    with torch.no_grad():
        for name, value in earlier.values.items():
            if school.holds(name):
                school.tensor(name).copy_(value)


def resume(earlier: Earlier, bench: Bench, observed: Observed) -> None:
    """Switches off what the earlier job removed."""
    units = bench.units
    if isinstance(units, ChannelUnits) and observed.channels is not None:
        units.resume(earlier.removal(observed.channels.groups))
    elif isinstance(units, WeightUnits):
        units.resume(earlier.zeros)


def left_off(earlier: Earlier, reach: Reach, target: Target | None) -> tuple[str, ...]:
    """A note where more is removed than was asked for, as the earlier job had removed it; else nothing."""
    if target is None:
        return ()
    grows = target.kind is TargetKind.SPARSITY
    beyond = reach.achieved - target.value if grows else target.value - reach.achieved
    if beyond <= _WORTH_A_NOTE:
        return ()
    what = f"{target.kind.value} is {reach.achieved:.4g} and not {target.value:g}"
    why = f"job {earlier.job_id} had removed as much, and continuing never removes less"
    return (f"{what}: {why}. For less, prune without continuing.",)
