"""The check of a finished run, in a process that has seen nothing of it: does the file do what the model did?"""

from __future__ import annotations

from pathlib import Path

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard, get_tensor
from pruning_server.graph.proof.pair import Call
from pruning_server.graph.training import thaw
from pruning_server.jobs.events import CheckPassed
from pruning_server.jobs.workspace import EXPECTED_FILE, MODEL_FILE, PRUNED_FILE
from pruning_server.worker.archives import load_module
from pruning_server.worker.expected import Expected, StoredRun, relative_error, unpack
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.proof import prove
from pruning_server.worker.proof_gate import open_gate, prove_core
from pruning_server.worker.running import all_tensors

MAX_RELATIVE_ERROR = 1e-5


def check_run(folder: RunFolder) -> CheckPassed:
    """Loads `out/pruned.pt`, compares its outputs with `out/expected.npz`, and counts the pruned weights that are not 0.

    Where channels were removed, or put into another order for a gate, the caller's archive is read again, and the file
    (its gate open) is proven equal to the masked model, and the gate's core to the whole without the other channels.

    Raises:
        JobFailureError: VERIFICATION_FAILED: the file does not load, its outputs differ by more than
            `MAX_RELATIVE_ERROR`, a pruned weight is not exactly 0, or the proof fails.
    """
    job = folder.job()
    expected = unpack(folder.path(EXPECTED_FILE))
    module = _load(folder.path(PRUNED_FILE), job.device).eval()
    # Weights that a frozen archive holds as constants have names only in a thawed copy.
    _check_zeros(thaw(module), expected)
    error = max((_run_error(module, run, expected, job.device) for run in expected.meta.runs), default=0.0)
    if not error <= MAX_RELATIVE_ERROR:
        raise _failure(
            f"Loaded in a fresh process, the pruned archive gives other outputs than the model in memory did "
            f"(relative error {error:.3g}, at most {MAX_RELATIVE_ERROR:.0e})."
        )
    if expected.meta.cut or expected.meta.core:
        _prove(folder, expected, job.device)
    return CheckPassed(max_relative_error=error)


def _load(path: Path, device: str) -> torch.jit.ScriptModule:
    return load_module(path, device, "pruned model", Reason.VERIFICATION_FAILED)


def _check_zeros(module: torch.jit.ScriptModule, expected: Expected) -> None:
    for mask in expected.meta.masks:
        try:
            tensor = get_tensor(module, mask.weight).detach().cpu()
        except KeyError as error:
            raise _failure(f"The pruned archive has no weight {mask.weight}.") from error
        if tuple(tensor.shape) != mask.shape:
            raise _failure(f"{mask.weight} has shape {list(tensor.shape)} in the pruned archive, not {mask.shape}.")
        wrong = int((tensor[expected.removed(mask)] != 0).sum())
        if wrong:
            raise _failure(f"{wrong} weights of {mask.weight} should be 0 and are not.")


def _prove(folder: RunFolder, expected: Expected, device: str) -> None:
    calls = [Call("forward", expected.arguments(run, device)) for run in expected.meta.runs]
    calls += [Call(call.method, expected.arguments(call, device)) for call in expected.meta.calls]
    original, shrunk = folder.path(MODEL_FILE), folder.path(PRUNED_FILE)

    def whole() -> torch.jit.ScriptModule:
        module = _load(shrunk, device)
        return open_gate(module) if expected.core else module

    prove(lambda: load_module(original, device, "model"), whole, expected.cut, calls, seed=expected.meta.seed)
    if expected.core:
        prove_core(whole, expected.core, calls[: len(expected.meta.runs)], seed=expected.meta.seed)


def _run_error(module: torch.jit.ScriptModule, run: StoredRun, expected: Expected, device: str) -> float:
    arguments = expected.arguments(run, device)
    wanted = [expected.tensor(stored, device) for stored in run.outputs]
    torch.manual_seed(expected.meta.seed)
    with torch.no_grad(), StateGuard(module):
        return relative_error(all_tensors(module(*arguments)), wanted)


def _failure(text: str) -> JobFailureError:
    return JobFailureError(Reason.VERIFICATION_FAILED, f"{text} The model was not delivered; please report this.")
