"""LOAD: the archive becomes modules, the datasets become arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.training import thaw
from pruning_server.jobs.workspace import LOSS_FILE, MODEL_FILE, WorkerJob
from pruning_server.worker.archives import ModelArchive, load_module
from pruning_server.worker.datasets import read_samples
from pruning_server.worker.earlier import Earlier, read_earlier
from pruning_server.worker.feeding import Samples
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.permitted import require_permitted


@dataclass(frozen=True)
class Loaded:
    """What the run works with.

    Attributes:
        archive: where fresh copies come from.
        original: in evaluation mode, never changed.
        subject: a second load, to be pruned; thawed where the archive is frozen.
        frozen_archive: whether the archive holds its weights as constants.
        validation: the set that is split.
        train: the training set, for the generalization gap only.
        loss_module: the caller's loss, in evaluation mode.
        methods: samples of exported methods other than forward, by name.
        earlier: the result of the job that this one continues from.
    """

    archive: ModelArchive
    original: torch.jit.ScriptModule
    subject: torch.jit.ScriptModule
    frozen_archive: bool
    validation: Samples
    train: Samples | None
    loss_module: torch.jit.ScriptModule | None
    methods: Mapping[str, Samples]
    earlier: Earlier | None = None


def load(job: WorkerJob, folder: RunFolder) -> Loaded:
    """Loads model, datasets and loss module.

    Raises:
        JobFailureError: torch does not load the model (MODEL_NOT_LOADABLE), it can run an operator that is not in the
            allowlist (MODEL_REFUSED), or a weight is not finite (MODEL_NOT_FINITE).
    """
    archive = ModelArchive.read(folder.path(MODEL_FILE), job.device)
    original, loaded = archive.load().eval(), archive.load()
    require_permitted(original, "model")
    subject = thaw(loaded)
    for module in (original, subject):
        check_finite(module)
    return Loaded(
        archive=archive,
        original=original,
        subject=subject,
        frozen_archive=subject is not loaded,
        validation=read_samples(folder.path(job.validation.path), "validation"),
        train=read_samples(folder.path(job.train.path), "training") if job.train else None,
        loss_module=_loss(job, folder),
        methods={
            item.method: read_samples(folder.path(item.file.path), f"{item.method} method's") for item in job.methods
        },
        earlier=read_earlier(job.earlier, folder, archive) if job.earlier else None,
    )


def check_finite(module: torch.jit.ScriptModule) -> None:
    """Refuses weights with NaN or infinities; a buffer may hold infinities, as attention masks do.

    Raises:
        JobFailureError: MODEL_NOT_FINITE, naming the tensor.
    """
    buffers = {name for name, _ in module.named_buffers()}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        bad = torch.isnan(tensor) if name in buffers else ~torch.isfinite(tensor)
        count = int(bad.sum())
        if count:
            text = (
                f"{name} has {count} of {tensor.numel()} values that are NaN or infinite. The model cannot be pruned "
                "or judged as it is: send one whose weights are finite."
            )
            raise JobFailureError(Reason.MODEL_NOT_FINITE, text, metadata={"tensor": name})


def _loss(job: WorkerJob, folder: RunFolder) -> torch.jit.ScriptModule | None:
    if job.loss_module is None:
        return None
    module = load_module(folder.path(LOSS_FILE), job.device, "loss module", Reason.LOSS_UNSUITABLE).eval()
    require_permitted(module, "loss module")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
