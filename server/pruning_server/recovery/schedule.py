"""How long and in which steps to train: deterministic, so that a seed gives the same model again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pruning_server.spec.request import FineTune

TARGET_STEPS = 1100
MIN_EPOCHS, MAX_EPOCHS = 2, 40
MIN_BATCH_SIZE, MAX_BATCH_SIZE = 8, 64
# Of small sets; with fewer samples in each, what normalization learns of a batch is noise.
SMALLEST_SET_IN_BATCHES = 10
# Multiply-accumulates of automatic training; a few minutes on two CPU cores. Counted rather than timed: a clock would
# give another number of epochs, and another model, on every run.
MACS_BUDGET = {"cpu": 2.4e13, "cuda": 2.4e15}
# A step costs a forward pass and about two more for the gradients.
PASSES_PER_STEP = 3
MIN_PATIENCE_EPOCHS = 5
# Of both trainings together, in epochs of the first.
REFITTED_COST = 2.5


@dataclass(frozen=True)
class TrainingPlan:
    """How to fine-tune.

    `learning_rate` None: tried out. `patience_epochs` None: no early stop. `refits`: whether there is time to train once
    more on fit and select together.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None
    weight_decay: float
    patience_epochs: int | None
    seed: int
    refits: bool = False
    affordable_epochs: int = MAX_EPOCHS

    def affords(self, trainings: int) -> bool:
        """Whether so many of these trainings cost no more than an automatic one may."""
        return self.epochs * trainings <= self.affordable_epochs


def plan_training(request: FineTune, *, samples: int, macs: int | None, device_type: str, seed: int) -> TrainingPlan:
    """Fills in what the request leaves open, from the number of samples and the multiply-accumulates of one."""
    batch_size = request.batch_size or min(MAX_BATCH_SIZE, max(MIN_BATCH_SIZE, samples // SMALLEST_SET_IN_BATCHES))
    affordable = _affordable_epochs(samples, macs, device_type)
    if request.epochs is not None:
        epochs, patience, refits = request.epochs, None, False
    else:
        epochs = _automatic_epochs(samples, batch_size, affordable)
        # The rate falls to zero, and the best comes late.
        patience = max(MIN_PATIENCE_EPOCHS, epochs // 2)
        refits = affordable >= REFITTED_COST * epochs
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=request.learning_rate,
        weight_decay=request.weight_decay,
        patience_epochs=patience,
        seed=seed,
        refits=refits,
        affordable_epochs=affordable,
    )


def batches(
    samples: int, batch_size: int, exact_batch: int | None, generator: np.random.Generator
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The steps of one epoch in random order, each as the forward passes that it takes.

    Batches differ by at most one sample, so that none is a single sample which batch normalization could not take. A
    model that takes only batches of `exact_batch` gets several passes per step, and what is left over waits for the
    next epoch.
    """
    order = generator.permutation(samples)
    if exact_batch is None:
        steps = max(1, -(-samples // batch_size))
        for rows in np.array_split(order, steps):
            yield (tuple(int(row) for row in rows),)
        return
    passes = [order[i : i + exact_batch] for i in range(0, samples - exact_batch + 1, exact_batch)]
    per_step = max(1, batch_size // exact_batch)
    for i in range(0, len(passes), per_step):
        yield tuple(tuple(int(row) for row in rows) for rows in passes[i : i + per_step])


def decayed(learning_rate: float, step: int, steps: int) -> float:
    """Falls linearly to zero: at constant rates the last steps undo what earlier ones won (Le and Hua, 2021)."""
    return learning_rate * max(0.0, 1.0 - step / max(1, steps))


def _automatic_epochs(samples: int, batch_size: int, affordable: int) -> int:
    steps_per_epoch = max(1, -(-samples // batch_size))
    return min(MAX_EPOCHS, max(MIN_EPOCHS, min(affordable, -(-TARGET_STEPS // steps_per_epoch))))


def _affordable_epochs(samples: int, macs: int | None, device_type: str) -> int:
    """What the budget allows; as many as there can be where the cost is not known."""
    if not macs:
        return MAX_EPOCHS
    budget = MACS_BUDGET.get(device_type, MACS_BUDGET["cpu"])
    return int(budget / (PASSES_PER_STEP * macs * max(1, samples)))
