"""What the process does once it is contained: this module is the first to import torch."""

from __future__ import annotations

import torch

from pruning_server.jobs.events import CheckPassed, RunSucceeded
from pruning_server.worker.check import check_run
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.pipeline import run_job
from pruning_server.worker.story import Story


def run(folder: RunFolder, story: Story) -> RunSucceeded:
    """Runs the job of the folder."""
    job = folder.job()
    make_reproducible(job.threads)
    return run_job(job, folder, story)


def check(folder: RunFolder) -> CheckPassed:
    """Checks what the run left."""
    make_reproducible(folder.job().threads)
    return check_run(folder)


def make_reproducible(threads: int) -> None:
    """The same seed on the same machine gives the same bits: fixed threads, no autotuned or reordered kernels."""
    torch.set_num_threads(max(1, threads))
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
