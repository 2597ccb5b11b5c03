"""Language models on their own inputs: which input holds the tokens, which of them count, and what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.objective import IGNORED_LABEL, Objective, TokenFacts
from pruning_server.worker.calling import forward_arguments
from pruning_server.worker.feeding import Feed, Rows, Samples
from pruning_server.worker.running import Subject

BLOCK_ROWS = 4096
# Relative change of earlier outputs up to which a model does not look ahead.
AHEAD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NextTokens:
    """Numbers of a set's inputs [N, length]: `tokens`, and `mask`, where it is 0 a token is padding; None: none is."""

    tokens: int
    mask: int | None = None

    def targets(self, samples: Samples, rows: Rows) -> np.ndarray:
        """[n, length] int64: the next token of each place, -100 at the last one and before padding."""
        index = np.asarray(rows, dtype=np.intp)
        wanted = np.full((len(index), samples.inputs[self.tokens].shape[1]), IGNORED_LABEL, dtype=np.int64)
        wanted[:, :-1] = samples.inputs[self.tokens][index, 1:]
        if self.mask is not None:
            wanted[:, :-1][np.asarray(samples.inputs[self.mask][index, 1:]) == 0] = IGNORED_LABEL
        return wanted


def find_tokens(module: torch.jit.ScriptModule, feed: Feed) -> NextTokens | None:
    """The first input of whole numbers [N, length], and a mask of that shape where forward names one so."""
    samples, names = feed.samples, _argument_names(module, feed)
    rows = [
        place
        for place, (array, form) in enumerate(zip(samples.inputs, feed.forms, strict=True))
        if array.ndim == 2 and array.shape[1] >= 2 and not form.dtype.is_floating_point and "mask" not in names[place]
    ]
    if not rows:
        return None
    shape = samples.inputs[rows[0]].shape
    masks = [place for place, name in enumerate(names) if "mask" in name and samples.inputs[place].shape == shape]
    return NextTokens(rows[0], masks[0] if masks else None)


def token_facts(tokens: NextTokens | None, samples: Samples) -> TokenFacts | None:
    """What the choice of the task needs to know of the tokens beside the targets."""
    if tokens is None:
        return None
    array, targets = samples.inputs[tokens.tokens], samples.targets
    if targets is None or targets.shape != array.shape:
        return TokenFacts(array.shape[1])
    repeated = shifted = True
    for start in range(0, len(array), BLOCK_ROWS):
        ids, labels = np.asarray(array[start : start + BLOCK_ROWS]), np.asarray(targets[start : start + BLOCK_ROWS])
        counted = labels != IGNORED_LABEL
        repeated = repeated and bool(counted.any()) and bool((ids == labels)[counted].all())
        shifted = shifted and bool(counted[:, :-1].any())
        shifted = shifted and bool((ids[:, 1:] == labels[:, :-1])[counted[:, :-1]].all())
    return TokenFacts(array.shape[1], repeated=repeated, shifted=shifted)


def require_causal(subject: Subject, feed: Feed, tokens: NextTokens, objective: Objective) -> None:
    """Refuses a model that looks ahead: it would be judged by tokens that it has seen.

    Raises:
        JobFailureError: DATASET_TARGETS: what the model says of a place changes with a later token.
    """
    row, last = _longest(feed.samples, tokens)
    values = feed.samples.inputs[tokens.tokens][row]
    others = values[values != values[last]]
    if last < 1 or not len(others):
        return
    rows = [row] * (subject.rule.exact_batch or 1)
    inputs = list(feed.inputs(rows))
    place = _positions(feed)[tokens.tokens]
    changed = inputs[place]
    if not isinstance(changed, torch.Tensor):
        return
    changed = changed.clone()
    changed[:, last] = int(others[0])
    before, after = (_output(subject, (*inputs[:place], ids, *inputs[place + 1 :])) for ids in (inputs[place], changed))
    axis = objective.class_axis or 1
    before, after = (one.movedim(axis, -1).reshape(len(rows), -1, one.shape[axis])[:, :last] for one in (before, after))
    scale = float(before.abs().max())
    if float((before - after).abs().max()) > AHEAD_TOLERANCE * max(scale, 1e-6):
        text = (
            "What the model says of a token changes with the tokens after it, so it has seen the next token that it would "
            "be judged by. Add `targets`, such as masked tokens with -100 elsewhere, or leave the task open."
        )
        raise JobFailureError(Reason.DATASET_TARGETS, text)


def _output(subject: Subject, inputs: tuple[object, ...]) -> torch.Tensor:
    torch.manual_seed(subject.rule.seed)
    with torch.no_grad(), subject.state:
        return subject.output(inputs).double()


def _longest(samples: Samples, tokens: NextTokens) -> tuple[int, int]:
    """A row with as many tokens as any of the first, and the place of its last one."""
    if tokens.mask is None:
        return 0, samples.inputs[tokens.tokens].shape[1] - 1
    mask = np.asarray(samples.inputs[tokens.mask][:BLOCK_ROWS]) != 0
    row = int(mask.sum(axis=1).argmax())
    return row, int(np.flatnonzero(mask[row])[-1]) if mask[row].any() else 0


def _positions(feed: Feed) -> list[int]:
    """The place among forward's arguments of each input."""
    total = len(feed.samples.inputs) + len(feed.scalars)
    return [place for place in range(total) if place not in feed.scalars]


def _argument_names(module: torch.jit.ScriptModule, feed: Feed) -> list[str]:
    names = [str(argument.name) for argument in forward_arguments(module)]
    return list(_named(names, _positions(feed)))


def _named(names: list[str], places: list[int]) -> Iterator[str]:
    for place in places:
        yield names[place].lower() if place < len(names) else ""
