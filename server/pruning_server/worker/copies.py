"""The copy of the pruned model that is trained: in float32 where the model is of half precision and allows it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pruning_server.graph import ir
from pruning_server.graph.training import enable_training
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory
from pruning_server.worker.feeding import Feed
from pruning_server.worker.forms import InputForm
from pruning_server.worker.running import CallRule, Subject

HALF = (torch.float16, torch.bfloat16)
# Half precision keeps two to three digits; over many layers one or two are left.
MAX_WIDENING_ERROR = 0.1


@dataclass(frozen=True)
class TrainingCopy:
    """A module whose training flags mean something, how it is fed, and what people should know."""

    module: torch.jit.ScriptModule
    feed: Feed
    notes: tuple[str, ...]


def make_training_copy(subject: torch.jit.ScriptModule, feed: Feed, rule: CallRule) -> TrainingCopy:
    """Prepares the pruned model for training; `subject` itself may be what is returned.

    Half precision rounds away small updates and drifts in running statistics, and is slow on the CPU, so that such a
    model is trained in float32 and rounded once at the end, where its graph takes float32.
    """
    if not any(tensor.dtype in HALF for tensor in subject.state_dict().values()):
        return TrainingCopy(enable_training(subject).module, feed, ())
    wide = ir.duplicate(subject).float()
    wide_feed = replace(feed, forms=tuple(_widened(form.dtype, form) for form in feed.forms))
    if _same_outputs(subject, feed, wide, wide_feed, rule):
        note = "Recovery ran in float32; the weights were rounded back to half precision at its end."
        return TrainingCopy(enable_training(wide).module, wide_feed, (note,))
    return TrainingCopy(enable_training(subject).module, feed, ())


def _widened(dtype: torch.dtype, form: InputForm) -> InputForm:
    return replace(form, dtype=torch.float32) if dtype in HALF else form


def _same_outputs(
    subject: torch.jit.ScriptModule, feed: Feed, wide: torch.jit.ScriptModule, wide_feed: Feed, rule: CallRule
) -> bool:
    rows = [row % len(feed.samples) for row in range(rule.exact_batch or 2)]
    try:
        narrow_output, wide_output = (
            _output(ir.duplicate(module).eval(), fed, rows, rule)
            for module, fed in ((subject, feed), (wide, wide_feed))
        )
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return False
    if wide_output.dtype != torch.float32 or wide_output.shape != narrow_output.shape:
        return False
    scale = float(narrow_output.abs().max().clamp_min(1e-6))
    return bool(((wide_output - narrow_output.float()).abs() <= MAX_WIDENING_ERROR * scale).all())


def _output(module: torch.jit.ScriptModule, feed: Feed, rows: list[int], rule: CallRule) -> torch.Tensor:
    subject = Subject.of(module, rule)
    torch.manual_seed(rule.seed)
    with torch.no_grad(), subject.state:
        return subject.output(feed.inputs(rows))
