"""What a strategy sees of a model and its data, made by the worker's own phases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.runs import Recorder, TickingClock, make_spec, make_workspace
from pruning_server.spec.phases import Phase
from pruning_server.worker.evidence import ModelEvidence
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.latency import latency_meter
from pruning_server.worker.phases.baseline import judge_original
from pruning_server.worker.phases.load import load
from pruning_server.worker.phases.observe import observe
from pruning_server.worker.planning import Planning
from pruning_server.worker.story import Story


def planning_of(
    root: Path, model: Path | torch.jit.ScriptModule, data: Mapping[str, np.ndarray], **fields: Any
) -> Planning:
    """Everything that planning gets, as in a job with these fields of the request."""
    folder = RunFolder(make_workspace(root, model, data, make_spec(**fields)))
    job = folder.job()
    story = Story(Recorder(), TickingClock())
    with story.telling(Phase.LOAD):
        loaded = load(job, folder)
    with story.telling(Phase.OBSERVE):
        observed = observe(job.spec, loaded, folder, story)
    with story.telling(Phase.BASELINE):
        baseline = judge_original(loaded, observed, story)
    story.phase = Phase.PLAN
    reference = baseline.validation.reference
    meter = latency_meter(job, loaded, observed, folder, story)
    evidence = ModelEvidence(loaded, observed, reference, meter, seed=job.spec.seed)
    return Planning(job.spec, loaded, observed, reference, evidence, folder, story)


def evidence_of(
    root: Path, model: Path | torch.jit.ScriptModule, data: Mapping[str, np.ndarray], **fields: Any
) -> ModelEvidence:
    """The evidence of a job with these fields of the request."""
    found = planning_of(root, model, data, **fields).evidence
    assert isinstance(found, ModelEvidence)
    return found
