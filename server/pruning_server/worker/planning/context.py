"""What a strategy's planning may use."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.pruning.evidence import Evidence
from pruning_server.spec.request import PruningSpec
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.judging import Reference
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.story import Story


@dataclass(frozen=True)
class Planning:
    """Everything that is known before anything is pruned.

    Attributes:
        reference: the original's outputs on the validation set.
        evidence: runs of the unpruned model, where a strategy asks for them.
    """

    spec: PruningSpec
    loaded: Loaded
    observed: Observed
    reference: Reference
    evidence: Evidence
    folder: RunFolder
    story: Story
