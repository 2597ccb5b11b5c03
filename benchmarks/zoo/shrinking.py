"""One archive through planning, surgery and the comparison with its masked original."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import find_weights
from pruning_server.graph.proof.pair import Call
from pruning_server.graph.structure import Cut, Structure, analyse, shrink
from pruning_server.graph.surgery.constants import thawed_names
from pruning_server.graph.training import thaw
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import StructuralPlan
from pruning_server.spec.report import VerifySection
from pruning_server.spec.request import Granularity, StaticStrategy, Target, TargetKind
from pruning_server.worker.proof import prove
from pruning_server.worker.structures import Channels

_STRATEGY = StaticStrategy(granularity=Granularity.CHANNEL)


def find_structure(archive: Path, runs: Sequence[Sequence[object]], batch_size: int) -> Structure:
    """What can be removed; raises as `analyse` does."""
    return analyse(torch.jit.load(str(archive)).eval(), {"forward": runs}, batch_size=batch_size, head_dims=True)


def plan(archive: Path, structure: Structure, macs_ratio: float) -> StructuralPlan:
    """Which channels go for that share of the multiply-accumulates, or for as little as can be reached.

    Raises:
        JobFailureError: nothing can be removed.
    """
    module = torch.jit.load(str(archive)).eval()
    names = thawed_names(module)
    module = thaw(module)
    found = Channels(structure, names).inputs(module, find_weights(module).weights)
    try:
        return plan_structure(found, _STRATEGY, Target(kind=TargetKind.MACS_RATIO, value=macs_ratio), 0)
    except JobFailureError as error:
        nearest = float(error.metadata.get("nearest", 1.0)) if error.reason is Reason.TARGET_UNREACHABLE else 1.0
        if nearest >= 1.0:
            raise
        return plan_structure(found, _STRATEGY, Target(kind=TargetKind.MACS_RATIO, value=nearest), 0)


def remove(archive: Path, structure: Structure, planned: StructuralPlan, to: Path) -> Cut:
    """Writes the archive without the planned channels."""
    module = torch.jit.load(str(archive))
    cut = shrink(module, structure, planned.removal)
    module.save(str(to))
    return cut


def prove_equal(
    original: Path, shrunk: Path, cut: Cut, runs: Sequence[Sequence[object]], seed: int = 0
) -> VerifySection:
    """The proof that jobs make, from the files.

    Raises:
        JobFailureError: VERIFICATION_FAILED: they differ.
    """

    def load(path: Path) -> torch.jit.ScriptModule:
        return torch.jit.load(str(path)).eval()

    calls = [Call("forward", tuple(run)) for run in runs]
    return prove(
        lambda: load(original), lambda: load(shrunk), cut, calls, seed=seed, load_unrecovered=lambda: load(shrunk)
    )
