"""Finding out how a model wants to be called: the form of its inputs and the batch sizes that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, sentence
from pruning_server.spec.request import PruningSpec
from pruning_server.worker.feeding import Feed, Samples
from pruning_server.worker.forms import IMAGE_SCALE, InputForm, candidate_forms
from pruning_server.worker.running import CallRule, select_output

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
    trial = _Trial(module, StateGuard(module), CallRule(stateful=True, selector=spec.output_selector, seed=spec.seed))
    scalars = _scalars(module, samples, spec, device)
    candidates = candidate_forms(samples.inputs, samples.input_dtypes, spec.preprocessing, floating_dtype(module))
    feeds = [Feed(samples, forms, scalars, device) for forms in candidates]
    errors: list[Exception | None] = []
    for feed in feeds:
        call, error = _any_batch(trial, feed)
        if call is not None:
            return replace(call, notes=(*_described(feed), *_also_unscaled(trial, feed, spec), *call.notes))
        errors.append(error)
    for feed in feeds:
        call = _fixed_batch(trial, feed)
        if call is not None:
            return replace(call, notes=(*_described(feed), *call.notes))
    raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, _refusal(module, feeds[0], spec, errors[0]))


def floating_dtype(module: torch.jit.ScriptModule) -> torch.dtype:
    """The type in which the model computes: that of most of its floating-point numbers, float32 where it has none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else torch.float32


@dataclass(frozen=True)
class _Trial:
    """A module that is called in one way after another; its state is put back after each call."""

    module: torch.jit.ScriptModule
    state: StateGuard
    rule: CallRule

    def attempt(self, feed: Feed, first: int, size: int) -> tuple[torch.Tensor | None, Exception | None]:
        """The judged output for `size` samples from `first` on, or what the model raised."""
        return self.call(feed.inputs([(first + row) % len(feed.samples) for row in range(size)]))

    def call(self, inputs: tuple[object, ...]) -> tuple[torch.Tensor | None, Exception | None]:
        """The judged output for these arguments of forward, or what the model raised."""
        torch.manual_seed(self.rule.seed)
        try:
            with torch.no_grad(), self.state:
                output = self.module(*inputs)
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            return None, error
        return select_output(output, self.rule.selector), None


def _any_batch(trial: _Trial, feed: Feed) -> tuple[Call | None, Exception | None]:
    """How the model takes several samples at once, else one at a time; else what it raised."""
    many = min(OBSERVED_BATCH, len(feed.samples))
    together, first_error = trial.attempt(feed, 0, many)
    single, error = trial.attempt(feed, 0, 1)
    if together is not None and _rows(together) == many:
        if single is None:
            return Call(feed, trial.rule, (many,), ()), None
        squeezes = many > 1 and single.shape == together.shape[1:]
        rule = replace(trial.rule, squeezes_single=squeezes)
        if many == 1 or _agree(trial, feed, together):
            return Call(feed, rule, (1, many), ()), None
        _require_samples_first(trial, feed, together, single)
        note = "The outputs depend on the other samples of a batch, so the model is run on one sample at a time."
        return Call(feed, replace(rule, exact_batch=1), (1,), (note,)), None
    if single is None:
        return None, first_error or error
    if together is not None:
        _require_samples_first(trial, feed, together, single)
    rule = replace(trial.rule, exact_batch=1, adds_batch_axis=_rows(single) != 1)
    return Call(feed, rule, (1,), ("The model takes one sample at a time.",)), None


def _require_samples_first(trial: _Trial, feed: Feed, together: torch.Tensor, single: torch.Tensor) -> None:
    """Refuses outputs of one and of several samples that cannot both have the samples first.

    Raises:
        JobFailureError: MODEL_OUTPUT_UNSUPPORTED: the samples stand on another axis, or are not told apart.
    """
    many = min(OBSERVED_BATCH, len(feed.samples))
    shapes = f"{list(single.shape)} for one sample and {list(together.shape)}"
    # A model that returns nothing else is run on one sample at a time.
    if trial.rule.selector and not together.ndim and not single.ndim and many > 1:
        text = (
            "That output is one number for a whole batch, as losses are. One for each sample is needed: name another with "
            "output_selector (--output-selector)."
        )
        raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
    if together.ndim == single.ndim:
        differing = [axis for axis in range(together.ndim) if together.shape[axis] != single.shape[axis]]
        if (
            len(differing) == 1
            and differing[0] > 0
            and together.shape[differing[0]] == many * single.shape[differing[0]]
        ):
            text = (
                f"The model returns {shapes} for {many}: the samples stand on axis {differing[0]}, and must be the first. "
                f"Wrap the model so that it returns output.transpose(0, {differing[0]})."
            )
            raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
    if _takes_samples_second(trial, feed, together, single):
        text = (
            "The model's first axis is not the samples: outputs change with other samples of a batch, and places along axis "
            "1 of the inputs are independent of each other, as in models that take sequences first (batch_first=False). "
            "Wrap the model so that it takes and returns the samples first: inputs.transpose(0, 1)."
        )
        raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)


def _takes_samples_second(trial: _Trial, feed: Feed, together: torch.Tensor, single: torch.Tensor) -> bool:
    """Whether a model whose outputs depend on the other samples gives each place of axis 1 an output of its own."""
    inputs = feed.inputs([0])
    lengths = {one.shape[1] for one in inputs if isinstance(one, torch.Tensor) and one.ndim >= 2}
    if len(lengths) != 1 or (length := lengths.pop()) < 2:
        return False
    axis = next((axis for axis, size in enumerate(single.shape) if size == length), None)
    if axis is None or (together.shape == single.shape and _is_close(together, single)):
        return False
    rolled = [one.roll(1, 1) if isinstance(one, torch.Tensor) and one.ndim >= 2 else one for one in inputs]
    moved, _ = trial.call(tuple(rolled))
    expected = single.roll(1, axis)
    is_flat = _is_close(expected, single)
    return moved is not None and moved.shape == single.shape and not is_flat and _is_close(moved, expected)


def _fixed_batch(trial: _Trial, feed: Feed) -> Call | None:
    """The one batch size that the model takes, as traces can have it baked in."""
    for size in FIXED_BATCHES:
        output, _ = trial.attempt(feed, 0, size)
        if output is not None and _rows(output) == size:
            note = f"The model takes batches of exactly {size} samples."
            return Call(feed, replace(trial.rule, exact_batch=size), (size,), (note,))
    return None


def _agree(trial: _Trial, feed: Feed, together: torch.Tensor) -> bool:
    """Whether samples have the same outputs alone as together."""
    apart = [trial.attempt(feed, row, 1)[0] for row in range(len(together))]
    alone = [output for output in apart if output is not None and output.numel() == together[:1].numel()]
    shapes = {tuple(output.shape) for output in alone}
    if len(alone) < len(apart) or not shapes <= {tuple(together[:1].shape), tuple(together.shape[1:])}:
        return False
    return _is_close(torch.cat([output.reshape(together[:1].shape) for output in alone]), together)


def _is_close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether the values are those of the same computation, up to the order of its sums."""
    tolerance = BATCH_TOLERANCE.get(second.dtype, DEFAULT_BATCH_TOLERANCE)
    one, other = first.double(), second.double()
    scale = float(other.abs().nan_to_num().max()) if other.numel() else 1.0
    return torch.allclose(one, other, rtol=0.0, atol=tolerance * max(scale, 1e-6), equal_nan=True)


def warn_of_batches(exact_batch: int | None, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """What to say where the parts of a set cannot be cut into the only batches that the model takes.

    Args:
        exact_batch: the only batch size; None: any.
        sizes: samples of each part.
    """
    if exact_batch is None or exact_batch == 1:
        return ()
    uneven = [f"{part} {size}" for part, size in sizes.items() if size % exact_batch]
    told = []
    if uneven:
        told.append(
            f"the model takes batches of exactly {exact_batch} samples, and these parts do not divide by that:"
            f" {', '.join(uneven)}. What is left over of fit waits for the next epoch; of the others it is filled up with"
            " copies of the last sample, whose outputs are not counted"
        )
    if sizes.get("fit", 0) < exact_batch:
        told.append(
            f"fit has {sizes.get('fit', 0)} samples, less than one batch of {exact_batch}, so that nothing is learnt from it:"
            " send more samples, mark more of them as fit, or script the model instead of tracing it"
        )
    return tuple(told)


def _rows(output: torch.Tensor) -> int:
    return len(output) if output.ndim else -1


def _described(feed: Feed) -> tuple[str, ...]:
    named = zip(feed.samples.input_names, feed.forms, strict=True)
    return tuple(f"{name}: fed as {form.description}." for name, form in named)


def _also_unscaled(trial: _Trial, feed: Feed, spec: PruningSpec) -> tuple[str, ...]:
    """A hint where bytes were scaled by default and the model takes them as they are, so that it may scale them too."""
    scaled = [form for form in feed.forms if form.dtype.is_floating_point and form.scale == IMAGE_SCALE]
    if not scaled or spec.preprocessing.scale is not None:
        return ()
    raw = replace(feed, forms=tuple(InputForm(torch.uint8) if form in scaled else form for form in feed.forms))
    output, _ = trial.attempt(raw, 0, 1)
    if output is None:
        return ()
    return (
        "The model also takes bytes as they are. If it scales them itself, send preprocessing.scale 1 (--scale 1).",
    )


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


def _refusal(module: torch.jit.ScriptModule, feed: Feed, spec: PruningSpec, error: Exception | None) -> str:
    """What the dataset holds, what forward takes, and what the model raised for the likeliest way."""
    samples = feed.samples
    held = ", ".join(
        f"{name} {dtype} {list(array.shape)}"
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
            f"That makes {given} argument{'s' * (given != 1)}, and {needed if given < needed else len(taken)} are needed: "
            "store one array per tensor argument (inputs_0, inputs_1, ...), and give scalars with --arg POSITION=VALUE."
        )
    said = sentence(error) if error else "nothing, but it returned no output for each sample."
    return text + (
        f"Fed as {'; '.join(form.description for form in feed.forms)}, the model raised: {said} Check the shape and type "
        "of the inputs, the layout, and scalar arguments (--arg)."
    )
