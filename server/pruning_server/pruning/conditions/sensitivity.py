"""How much the metric falls when half of one layer is switched off and nothing else; on the select samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.importance import slices_of
from pruning_server.pruning.ranking import lowest
from pruning_server.pruning.values import Mask


def sensitivity_of_weights(evidence: Evidence, name: str, kernel: torch.Tensor) -> float:
    """Without the smaller half of the kernel's weights; NaN where the model then gives no numbers."""
    removed = lowest(kernel.detach().double().abs().reshape(-1).cpu(), kernel.numel() // 2).reshape(kernel.shape)
    return _fall(evidence, evidence.trial({name: Mask(name, removed)}, part="select").mean_metric)


def sensitivity_of_channels(
    evidence: Evidence, groups: Sequence[ChannelGroup], names: Collection[str], kernel: torch.Tensor
) -> float:
    """Without the smaller half, by l2, of each group of channels that the kernel makes; NaN where it makes none.

    Args:
        evidence: runs the model.
        groups: all groups, in the order in which a removal numbers them.
        names: of the kernel.
        kernel: read, never written.
    """
    removal = {}
    for number, group in enumerate(groups):
        made = [one for one in group.members if not one.consumer and not {one.tensor, *one.aliases}.isdisjoint(names)]
        if made and group.size > 1:
            lengths = slices_of(made[0], kernel).double().square().sum(dim=1).cpu()
            removal[number] = tuple(lowest(lengths, group.size // 2).nonzero().flatten().tolist())
    return _fall(evidence, evidence.trial(removal, part="select").mean_metric) if removal else math.nan


def _fall(evidence: Evidence, metric: float) -> float:
    return evidence.original("select").mean_metric - metric
