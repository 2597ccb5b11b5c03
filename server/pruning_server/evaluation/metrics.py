"""The number that a task is judged by, sample by sample, so that two models can be compared in pairs.

Every metric is better when larger, and its value on a set is the mean over the set's samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.spec.request import Task

# As in torch's cross entropy: an element that does not count.
IGNORED_LABEL = -100
_ELEMENT_TASKS = frozenset({Task.SEGMENTATION, Task.SEQUENCE_LABELLING, Task.LANGUAGE_MODELLING})
LARGEST_ERROR = 1e12

PerSample = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """How samples are judged.

    Attributes:
        name: `accuracy`, `exact_match`, `element_accuracy`, `r2`, `agreement`, `agreement_r2` or `cosine_similarity`.
        is_binary: whether a sample is right or wrong, nothing between; then paired proportions apply.
        compares_with_original: whether the original's outputs are the truth; then the original has 1 by definition.
        compute: [n] values of outputs [n, ...] against the truth [n, ...].
    """

    name: str
    is_binary: bool
    compares_with_original: bool
    compute: PerSample

    def per_sample(self, outputs: np.ndarray, targets: np.ndarray | None, original: np.ndarray) -> np.ndarray:
        """Returns the value of each sample, float64 [n]; call it once with all samples of a set.

        Args:
            outputs: the judged model's [n, ...].
            targets: [n, ...]; not read where the metric compares with the original.
            original: the original model's outputs for the same samples.

        Raises:
            JobFailureError: there are no targets, and the metric needs them (DATASET_TARGETS).
        """
        truth = original if self.compares_with_original else targets
        if truth is None:
            raise JobFailureError(Reason.DATASET_TARGETS, f"the metric {self.name} needs targets; add them to the set")
        return np.asarray(self.compute(np.asarray(outputs), np.asarray(truth)), dtype=np.float64)

    def mean(self, values: np.ndarray) -> float:
        """The metric on the whole set; not a number for no samples."""
        return float(np.mean(values)) if len(values) else float("nan")


def choose_metric(
    task: Task,
    output_shape: tuple[int, ...],
    *,
    threshold: float = 0.0,
    class_axis: int | None = None,
) -> Metric:
    """Returns the metric of a task.

    Args:
        task: what the model is for.
        output_shape: of one sample's output, without the batch axis.
        threshold: from where on an output that is yes or no says yes: 0 for logits, 0.5 for probabilities.
        class_axis: of the outputs [n, ...] of pixels or tokens; None: each has one output, yes or no.

    Classification: `accuracy`, also of one next token per sample; several labels: `exact_match`, all labels of a sample
    right; one label per pixel or token: `element_accuracy`, the fraction of a sample's elements that are right, those with
    target -100 left out; regression: `r2`. Without targets: `agreement` of the highest output with the original's where
    there are several, else `agreement_r2` with the original's values; embeddings: `cosine_similarity` to the original's.

    All are without a unit and at most 1, so that a margin means the same everywhere: 0.01 is one sample of a hundred, or
    for r2 squared errors that grow by one hundredth of the targets' variance.
    """
    single = int(np.prod(output_shape, dtype=np.int64)) == 1
    match task:
        case Task.CLASSIFICATION if single:
            return _judged("accuracy", lambda y, t: _binary_right(y, t, threshold), is_binary=True)
        case Task.CLASSIFICATION | Task.LANGUAGE_MODELLING if len(output_shape) == 1:
            return _judged("accuracy", _top_right, is_binary=True)
        case Task.MULTILABEL:
            return _judged("exact_match", lambda y, t: _binary_right(y, t, threshold), is_binary=True)
        case _ if task in _ELEMENT_TASKS:
            chosen = chosen_classes(class_axis, threshold)
            return _judged("element_accuracy", lambda y, t: _elements_right(y, t, chosen), is_binary=False)
        case Task.REGRESSION:
            return _judged("r2", _explained, is_binary=False)
        case Task.EMBEDDING:
            return _compared("cosine_similarity", _cosine, is_binary=False)
        case _ if len(output_shape) == 1 and not single:
            return _compared("agreement", _same_top, is_binary=True)
        case _:
            return _compared("agreement_r2", _explained, is_binary=False)


def chosen_classes(class_axis: int | None, threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """What turns outputs [n, ...] into class numbers [n, elements]: the highest along the axis, else yes or no."""
    if class_axis is None:
        return lambda outputs: (_rows(outputs) > threshold).astype(np.int64)
    return lambda outputs: _rows(outputs.argmax(axis=class_axis))


def _judged(name: str, compute: PerSample, *, is_binary: bool) -> Metric:
    return Metric(name, is_binary, compares_with_original=False, compute=compute)


def _compared(name: str, compute: PerSample, *, is_binary: bool) -> Metric:
    return Metric(name, is_binary, compares_with_original=True, compute=compute)


def _rows(values: np.ndarray) -> np.ndarray:
    """[n, elements of one sample]."""
    return values.reshape(len(values), -1)


def _binary_right(outputs: np.ndarray, targets: np.ndarray, threshold: float) -> np.ndarray:
    """Right if every output of a sample is on its target's side of the threshold."""
    return np.asarray(((_rows(outputs) > threshold) == (_rows(targets) > 0)).all(axis=1))


def _top_right(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Class numbers [n], or one-hot rows like the outputs."""
    scores, truth = _rows(outputs), _rows(targets)
    wanted = truth[:, 0] if truth.shape[1] == 1 else truth.argmax(axis=1)
    return np.asarray(scores.argmax(axis=1) == wanted)


def _same_top(outputs: np.ndarray, original: np.ndarray) -> np.ndarray:
    return np.asarray(outputs.argmax(axis=1) == original.argmax(axis=1))


def _elements_right(outputs: np.ndarray, targets: np.ndarray, chosen: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    wanted = _rows(targets)
    right = chosen(outputs) == wanted
    counted = wanted != IGNORED_LABEL
    totals = counted.sum(axis=1)
    # A sample of which nothing counts is neither right nor wrong: both models get the same.
    return np.where(totals > 0, (right & counted).sum(axis=1) / np.maximum(totals, 1), 1.0)


def _explained(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Per-sample terms of R2: 1 - squared error / variance, summed over the outputs of a sample; their mean is R2.

    The variance is that of the given targets, the same for every model, so differences of R2 are differences of squared
    errors in units of the variance. Capped at -1e12, so that one infinite output stays a number.
    """
    wanted = _rows(targets).astype(np.float64)
    given = _rows(outputs).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.nan_to_num(np.square(given - wanted), nan=np.inf, posinf=np.inf).sum(axis=1)
        variance = float(np.square(wanted - wanted.mean(axis=0)).mean(axis=0).sum()) if len(wanted) else 0.0
        if variance == 0.0:
            return np.where(errors == 0.0, 1.0, 0.0)
        return np.asarray(1.0 - np.minimum(errors / variance, LARGEST_ERROR))


def _cosine(outputs: np.ndarray, original: np.ndarray) -> np.ndarray:
    given, wanted = _rows(outputs).astype(np.float64), _rows(original).astype(np.float64)
    lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
    products = (given * wanted).sum(axis=1)
    same = (given == wanted).all(axis=1)
    return np.where(same, 1.0, np.divide(products, lengths, out=np.zeros(len(given)), where=lengths > 0))
