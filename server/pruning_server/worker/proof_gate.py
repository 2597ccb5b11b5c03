"""The proof that the core of a gated model is the whole model with the other channels switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.gating.insertion import set_threshold
from pruning_server.graph.proof.difference import relative_error
from pruning_server.graph.proof.masked import cuts_by_name, randomize
from pruning_server.graph.proof.pair import RAISED, Call, OriginalRaisedError, call_method, created_as
from pruning_server.graph.proof.stored import adapted, find_stored, settled, stored_dtypes, widened
from pruning_server.graph.surgery.cut import Cut
from pruning_server.recovery.raised import last_line
from pruning_server.worker.proof import MAX_ERROR
from pruning_server.worker.running import all_tensors

Loader = Callable[[], torch.jit.ScriptModule]


def open_gate(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The gated model when it computes everything for every sample: the model that a proof is about."""
    set_threshold(module, float("inf"))
    return module


def prove_core(load: Loader, core: Cut, calls: Sequence[Call], *, seed: int) -> float:
    """Compares the gated model with its gate shut with the same model, open, and zeros where other channels are consumed.

    With the delivered weights in their own type, and with random ones in float64 where the model runs in it.

    Args:
        load: a fresh load of the gated archive; called several times.
        core: what the core does without.
        calls: calls of `forward` with the caller's samples.
        seed: of random weights.

    Returns:
        The largest relative error with the delivered weights.

    Raises:
        JobFailureError: VERIFICATION_FAILED: they differ.
    """
    given = _compared(load, core, calls, seed, None)
    with suppress(OriginalRaisedError):  # it does not run in float64, or not with random weights
        _compared(load, core, calls, seed, torch.float64)
    return given


def _compared(load: Loader, core: Cut, calls: Sequence[Call], seed: int, random: torch.dtype | None) -> float:
    whole, alone = (adapted(load(), random, without_dropout=random is not None) for _ in range(2))
    tolerance = MAX_ERROR[random or stored_dtypes(whole)[0]]
    if random is not None:
        randomize(whole, alone, (), seed)
    _switch_off(whole, core)
    whole, alone = settled(whole).eval(), settled(alone).eval()
    open_gate(whole)
    set_threshold(alone, float("-inf"))
    worst = max((_error(whole, alone, call, random) for call in calls), default=0.0)
    if not worst <= tolerance:
        how = "with random weights" if random is not None else "with the delivered weights"
        text = "The core of the gated archive differs from the model without the other channels"
        message = f"{text}, {how}: a relative error of {worst:.3g}. Nothing was delivered; please report this."
        raise JobFailureError(Reason.VERIFICATION_FAILED, message)
    return worst


def _switch_off(module: torch.jit.ScriptModule, core: Cut) -> None:
    cuts = cuts_by_name(core)
    with torch.no_grad():
        for stored in find_stored(module):
            for one in next((cuts[name] for name in stored.names if name in cuts), ()):
                places = torch.tensor(one.zeroed, dtype=torch.int64, device=stored.main.device)
                stored.main.index_fill_(one.axis, places, 0.0)


def _error(
    whole: torch.jit.ScriptModule, alone: torch.jit.ScriptModule, call: Call, dtype: torch.dtype | None
) -> float:
    widened_arguments = tuple(one if dtype is None else widened(one, dtype) for one in call.arguments)
    told = Call(call.method, widened_arguments)
    with torch.no_grad(), created_as(dtype):
        try:
            wanted = call_method(whole, told)
        except RAISED as error:
            raise OriginalRaisedError(last_line(error)) from error
        got = call_method(alone, told)
    return relative_error(all_tensors(got), all_tensors(wanted))
