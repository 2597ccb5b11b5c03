"""Finding out how a model wants to be called: the form of its inputs and the batch sizes that it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard
from pruning_server.recovery.memory import is_out_of_memory
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.spec.request import PruningSpec
from pruning_server.worker.failures import sentence
from pruning_server.worker.feeding import Feed, Samples
from pruning_server.worker.forms import InputForm, candidate_forms
from pruning_server.worker.running import CallRule, Subject, select_output

OBSERVED_BATCH = 3
# Batch sizes that a traced model may have baked in.
FIXED_BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)
# Relative difference up to which one batch and single samples count as the same outputs.
BATCH_TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 2e-1}
DEFAULT_BATCH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Call:
    """How to feed the model and call it, and what people should know about it."""

    feed: Feed
    rule: CallRule
    batch_sizes: tuple[int, ...]
    notes: tuple[str, ...]


def find_call(module: torch.jit.ScriptModule, samples: Samples, spec: PruningSpec, device: str) -> Call:
    """Tries the ways in which the dataset can be meant until the model runs.

    Args:
        module: in evaluation mode; its state is put back after every try.
        samples: the validation set.
        spec: preprocessing, scalar arguments, the part of the output that is judged.
        device: where the module is.

    Raises:
        JobFailureError: no way works (MODEL_INPUT_MISMATCH): what the model raised and what the dataset holds; or the
            output cannot be judged (MODEL_OUTPUT_UNSUPPORTED).
    """
    scalars = _scalars(module, samples, spec, device)
    tried: list[tuple[tuple[InputForm, ...], Exception]] = []
    for forms in candidate_forms(samples.inputs, samples.input_dtypes, spec.preprocessing, floating_dtype(module)):
        feed = Feed(samples, forms, scalars, device)
        try:
            return _fit_batches(module, feed, CallRule(selector=spec.output_selector, seed=spec.seed))
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            tried.append((forms, error))
    raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, _refusal(module, samples, spec, tried))


def floating_dtype(module: torch.jit.ScriptModule) -> torch.dtype:
    """The type in which the model computes: that of most of its floating-point numbers, float32 where it has none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


def _fit_batches(module: torch.jit.ScriptModule, feed: Feed, rule: CallRule) -> Call:
    """The batch sizes that the model takes; raises what the model raised where it takes none."""
    rule = replace(rule, stateful=True)
    notes = [
        f"{name}: fed as {form.description}." for name, form in zip(feed.samples.input_names, feed.forms, strict=True)
    ]
    many = min(OBSERVED_BATCH, len(feed.samples))
    together, first_error = _attempt(module, feed, rule, many)
    single, error = _attempt(module, feed, rule, 1)
    if together is not None and len(together) == many:
        if single is None or many == 1 or _agree(module, feed, rule, together, many):
            return Call(feed, rule, (1, many) if single is not None else (many,), tuple(notes))
        notes.append("The outputs depend on the other samples of a batch, so the model is run on one sample at a time.")
        return Call(feed, replace(rule, exact_batch=1), (1,), tuple(notes))
    if single is not None:
        notes.append("The model takes one sample at a time.")
        adds_axis = single.ndim == 0 or len(single) != 1
        return Call(feed, replace(rule, exact_batch=1, adds_batch_axis=adds_axis), (1,), tuple(notes))
    for size in FIXED_BATCHES:
        fixed, _ = _attempt(module, feed, replace(rule, exact_batch=size), size)
        if fixed is not None and len(fixed) == size:
            notes.append(f"The model takes batches of exactly {size} samples.")
            return Call(feed, replace(rule, exact_batch=size), (size,), tuple(notes))
    raise first_error or error or RuntimeError("the model returned no output for each sample")


def _attempt(
    module: torch.jit.ScriptModule, feed: Feed, rule: CallRule, size: int
) -> tuple[torch.Tensor | None, Exception | None]:
    """The judged output for the first samples, or what the model raised."""
    rows = [row % len(feed.samples) for row in range(size)]
    torch.manual_seed(rule.seed)
    try:
        with torch.no_grad(), StateGuard(module):
            output = module(*feed.inputs(rows))
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None, error
    return select_output(output, rule.selector), None


def _agree(module: torch.jit.ScriptModule, feed: Feed, rule: CallRule, together: torch.Tensor, many: int) -> bool:
    subject = Subject.of(module, rule)
    with torch.no_grad():
        apart = []
        for row in range(many):
            with subject.state:
                apart.append(subject.output(feed.inputs([row])))
    if any(output.shape != together[:1].shape for output in apart):
        return False
    tolerance = BATCH_TOLERANCE.get(together.dtype, DEFAULT_BATCH_TOLERANCE)
    one_by_one, at_once = torch.cat(apart).double(), together.double()
    scale = float(at_once.abs().nan_to_num().max()) if at_once.numel() else 1.0
    return torch.allclose(one_by_one, at_once, rtol=0.0, atol=tolerance * max(scale, 1e-6), equal_nan=True)


def forward_arguments(module: torch.jit.ScriptModule) -> list[Any]:
    """What forward takes after `self`: objects with `name`, `type` and `has_default_value()`."""
    method: Any = module.forward
    return list(method.schema.arguments)[1:]


def _scalars(module: torch.jit.ScriptModule, samples: Samples, spec: PruningSpec, device: str) -> dict[int, object]:
    """The request's scalar arguments by position, as forward declares them: traced models take numbers as tensors.

    Raises:
        JobFailureError: a position leaves a gap (MODEL_INPUT_MISMATCH).
    """
    total = len(samples.inputs) + len(spec.arguments)
    taken = forward_arguments(module)
    scalars: dict[int, object] = {}
    for argument in spec.arguments:
        if argument.position >= total:
            text = (
                f"The scalar argument at position {argument.position} leaves a gap: the dataset has "
                f"{len(samples.inputs)} inputs, so positions run from 0 to {total - 1}."
            )
            raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
        declared = str(taken[argument.position].type) if argument.position < len(taken) else ""
        value: object = argument.value
        if "Tensor" in declared and not isinstance(value, str):
            value = torch.tensor(value, device=device)
        elif declared == "float" and isinstance(value, int):
            value = float(value)
        scalars[argument.position] = value
    return scalars


def _refusal(
    module: torch.jit.ScriptModule,
    samples: Samples,
    spec: PruningSpec,
    tried: list[tuple[tuple[InputForm, ...], Exception]],
) -> str:
    held = ", ".join(
        f"{name} {dtype} {_shape(array)}"
        for name, dtype, array in zip(samples.input_names, samples.input_dtypes, samples.inputs, strict=True)
    )
    taken = forward_arguments(module)
    wanted = ", ".join(f"{argument.type} {argument.name}" for argument in taken)
    needed = sum(1 for argument in taken if not argument.has_default_value())
    given = len(samples.inputs) + len(spec.arguments)
    text = f"The model's forward takes ({wanted}); the dataset holds {held}"
    text += f", the request {len(spec.arguments)} more. " if spec.arguments else ". "
    if not needed <= given <= len(taken):
        return text + (
            f"That makes {given} argument{'s' * (given != 1)}, and {needed if given < needed else len(taken)} are needed: store one array "
            "per tensor argument (inputs_0, inputs_1, ...), and give scalars with --arg POSITION=VALUE."
        )
    forms, error = tried[0]
    fed = ", ".join(form.description for form in forms)
    return text + (
        f"Fed as {fed}, the model raised: {sentence(error)} Check the shape and type of the inputs, the layout, and "
        "scalar arguments (--arg)."
    )


def _shape(array: np.ndarray) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
