"""What both models predict, one class number at a time: of samples, of their elements, or of their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.metrics import IGNORED_LABEL


@dataclass(frozen=True)
class Predictions:
    """Both models' predictions where there is a truth, in the same order.

    Attributes:
        count: how many samples there are.
        samples: [m] the sample, in [0, count), that a prediction belongs to.
        places: [m] which of a sample's predictions it is, from 0.
        target: [m] the true class; for labels 0 or 1.
        original: [m] the original's class; `pruned`: likewise.
        of_labels: whether predictions say yes or no to one label each; then `places` are the labels.
    """

    count: int
    samples: np.ndarray
    places: np.ndarray
    target: np.ndarray
    original: np.ndarray
    pruned: np.ndarray
    of_labels: bool = False

    @property
    def one_each(self) -> bool:
        """Whether each sample has one prediction."""
        return len(self.samples) == self.count and bool((self.places == 0).all())


def read_predictions(
    target: np.ndarray, original: np.ndarray, pruned: np.ndarray, *, of_labels: bool = False
) -> Predictions:
    """Returns the predictions that count.

    Args:
        target: [n, k] class numbers, -100 where an element does not count; for labels 0 or 1.
        original: [n, k] class numbers that the original chooses.
        pruned: likewise.
        of_labels: whether the k predictions are for k different labels.
    """
    wanted = np.asarray(target).reshape(len(target), -1)
    samples, places = np.nonzero(wanted != IGNORED_LABEL)
    chosen = [np.asarray(values).reshape(wanted.shape)[samples, places] for values in (wanted, original, pruned)]
    truth, before, after = (values.astype(np.int32) for values in chosen)
    return Predictions(len(wanted), samples, places, truth, before, after, of_labels)
