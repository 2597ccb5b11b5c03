"""Running a model over samples: batch sizes it takes, the part of its output that is judged, its state put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.worker.feeding import Feed, Rows

MAX_SHOWN_PARTS = 8


@dataclass(frozen=True)
class CallRule:
    """How a model is called.

    Attributes:
        exact_batch: the only batch size that it takes (or that gives every sample its own output); None: any.
        adds_batch_axis: the output of a single sample comes without the sample axis.
        squeezes_single: likewise, but several samples have it, as in models that squeeze.
        selector: the part of the output that is judged: `logits`, `0`, `0.logits`; empty: the output itself.
        stateful: a run changes what the next one gives, so state is put back after each.
        seed: of whatever the model draws at random.
    """

    exact_batch: int | None = None
    adds_batch_axis: bool = False
    squeezes_single: bool = False
    selector: str = ""
    stateful: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A module and how to call it; within `state`, what a run changes of the model itself is put back."""

    module: torch.jit.ScriptModule
    rule: CallRule
    state: AbstractContextManager[object]

    @classmethod
    def of(cls, module: torch.jit.ScriptModule, rule: CallRule, *, keep_statistics: bool = False) -> Subject:
        """Analyses what must be put back after a run; `keep_statistics`: not what normalization learns in it."""
        state = StateGuard(module, keep_statistics=keep_statistics) if rule.stateful else nullcontext()
        return cls(module, rule, state)

    def output(self, inputs: tuple[object, ...]) -> torch.Tensor:
        """The judged output of one call, with the samples first; gradients as the caller set them.

        An output with a single axis of length above 1 per sample, such as [N, C, 1, 1], is [N, C].
        """
        selected = select_output(self.module(*inputs), self.rule.selector)
        lacks_axis = self.rule.adds_batch_axis or (self.rule.squeezes_single and _is_single(inputs))
        output = selected.unsqueeze(0) if lacks_axis else selected
        wide_axes = sum(size != 1 for size in output.shape[1:])
        return output.flatten(1) if output.ndim > 2 and wide_axes <= 1 else output

    def outputs(self, feed: Feed, rows: Rows, batch_size: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Runs the rows in order, without gradients, and yields (rows, output) per batch.

        Raises:
            JobFailureError: the model raised (MODEL_RUN_FAILED), or its output is not a number (MODEL_NOT_FINITE).
        """
        size = self.rule.exact_batch or batch_size
        start = 0
        while start < len(rows):
            part = rows[start : start + size]
            try:
                output = self._run(feed, part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1 or self.rule.exact_batch is not None:
                    raise
                size = max(1, size // 2)
                continue
            yield part, output
            start += len(part)

    def _run(self, feed: Feed, rows: Rows) -> torch.Tensor:
        padded = self._padded(rows)
        torch.manual_seed(self.rule.seed)
        try:
            with torch.no_grad(), self.state:
                output = self.output(feed.inputs(padded))[: len(rows)].detach()
        except MODEL_ERRORS as error:
            if is_out_of_memory(error):
                raise
            text = f"The model raised on samples {rows[0]} to {rows[-1]} of the {feed.name} set: {last_line(error)}"
            raise JobFailureError(Reason.MODEL_RUN_FAILED, text) from error
        if len(output) != len(rows):
            text = f"The model returned {len(output)} outputs for {len(rows)} samples; it must return one for each."
            raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
        return output

    def _padded(self, rows: Rows) -> Rows:
        exact = self.rule.exact_batch
        if exact is None or len(rows) == exact:
            return rows
        return [*rows, *[rows[-1]] * (exact - len(rows))]


def _is_single(inputs: tuple[object, ...]) -> bool:
    """Whether the arguments hold one sample: tensors of numbers have no axis."""
    sizes = [len(one) for one in inputs if isinstance(one, torch.Tensor) and one.ndim]
    return bool(sizes) and sizes[0] == 1


def select_output(output: object, selector: str) -> torch.Tensor:
    """The tensor that `selector` names in a model's output: keys and positions with dots between; empty: the only one.

    Raises:
        JobFailureError: there is none, or it is not floating-point (MODEL_OUTPUT_UNSUPPORTED); the message lists what
            there is.
    """
    found = _at(output, selector)
    tensors = all_tensors(found)
    if not isinstance(found, torch.Tensor) and len(tensors) == 1:
        found = tensors[0]
    if not isinstance(found, torch.Tensor):
        returned = f"The model returns {_shown(output)}" if not selector else f"{selector!r} is {_shown(found)}"
        text = f"{returned}; which part is judged must be named: output_selector (--output-selector). {_choice(output)}"
        raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
    if not found.is_floating_point():
        where = f"{selector!r} of the output" if selector else "The output"
        text = f"{where} holds {_dtype(found)} values; a floating-point one is needed (logits, not class numbers)."
        if found is not output:
            text = f"{text} {_choice(output)}"
        raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
    return found


def _at(output: object, selector: str) -> object:
    found, rest = output, selector
    while rest:
        step = _step(found, rest)
        if step is None:
            key = rest.split(".")[0]
            text = f"output_selector names {key!r}, and there the model returns {_shown(found)}. {_choice(output)}"
            raise JobFailureError(Reason.MODEL_OUTPUT_UNSUPPORTED, text)
        found, rest = step
    return found


def _step(output: object, selector: str) -> tuple[object, str] | None:
    """The part that the selector names first, and what is left of it; keys may have dots themselves, the longest wins."""
    parts = _parts(output)
    for key in sorted(parts, key=len, reverse=True):
        if selector == key or selector.startswith(f"{key}."):
            return parts[key], selector[len(key) + 1 :]
    return None


def _parts(output: object) -> dict[str, object]:
    """What an output is made of, by key or position; a named tuple has both."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple | list):
        fields = getattr(output, "_fields", ())
        return {str(place): value for place, value in enumerate(output)} | dict(zip(fields, output, strict=False))
    return {}


def _choice(output: object) -> str:
    """The floating-point tensors of an output with their paths, for a message."""
    found = [(path, one) for path, one in _paths(output, "") if one.is_floating_point()]
    if not found:
        return "There is no floating-point tensor in it."
    shown = [f"{path!r} {_dtype(one)} {list(one.shape)}" for path, one in found[:MAX_SHOWN_PARTS]]
    more = f" and {len(found) - MAX_SHOWN_PARTS} more" if len(found) > MAX_SHOWN_PARTS else ""
    return f"There is {', '.join(shown)}{more}."


def _paths(output: object, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield prefix, output
        return
    fields = getattr(output, "_fields", ())
    for key, value in _parts(output).items():
        # A named tuple's parts are listed once, by name.
        if not (fields and key.isdigit()):
            yield from _paths(value, f"{prefix}.{key}" if prefix else key)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shown(output: object) -> str:
    if isinstance(output, torch.Tensor):
        return f"a single tensor {_dtype(output)} {list(output.shape)}"
    if isinstance(output, tuple | list | Mapping):
        return f"a {type(output).__name__} of {len(output)}"
    return "nothing" if output is None else f"a {type(output).__name__}"


def all_tensors(output: object) -> list[torch.Tensor]:
    """Every tensor in a model's output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in all_tensors(value)]
    if isinstance(output, tuple | list):
        return [tensor for value in output for tensor in all_tensors(value)]
    return []


def rows_of(samples: int) -> np.ndarray:
    """All positions of a set."""
    return np.arange(samples)
