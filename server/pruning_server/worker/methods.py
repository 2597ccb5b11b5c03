"""Samples of exported methods other than forward: how each is fed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard, exported_methods
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, sentence
from pruning_server.spec.request import Preprocessing
from pruning_server.worker.calling import floating_dtype
from pruning_server.worker.feeding import Feed, Samples
from pruning_server.worker.forms import candidate_forms

TRIED_ROWS = 2


def find_method_feeds(
    module: torch.jit.ScriptModule, methods: Mapping[str, Samples], preprocessing: Preprocessing, device: str
) -> dict[str, Feed]:
    """The form in which each method takes its samples, found by trying; the module's state is as before.

    Raises:
        JobFailureError: MODEL_INPUT_MISMATCH: there is no such method, or it takes the samples in no form.
    """
    return {name: _find_feed(module, name, samples, preprocessing, device) for name, samples in methods.items()}


def _find_feed(
    module: torch.jit.ScriptModule, name: str, samples: Samples, preprocessing: Preprocessing, device: str
) -> Feed:
    known = exported_methods(module)
    if name not in known:
        text = f"method_samples: the model has no method '{name}'; it has {', '.join(known)}."
        raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
    first: Exception | None = None
    for forms in candidate_forms(samples.inputs, samples.input_dtypes, preprocessing, floating_dtype(module)):
        feed = Feed(samples, forms, {}, device)
        try:
            with torch.no_grad(), StateGuard(module):
                getattr(module, name)(*feed.inputs([row % len(samples) for row in range(TRIED_ROWS)]))
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            first = first or error
            continue
        return feed
    text = (
        f"method_samples: '{name}' does not take its samples: {sentence(first) if first else 'no form of them fits.'}"
    )
    raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
