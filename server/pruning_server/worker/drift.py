"""Numbers that tell two sets of samples apart: of the inputs as the model takes them, of the original's outputs, of labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pruning_server.evaluation.drift import describe, describe_classes
from pruning_server.spec.report import FeatureHistogram
from pruning_server.spec.request import Task
from pruning_server.worker.feeding import Feed
from pruning_server.worker.judging import Reference
from pruning_server.worker.phases.observe import Observed

MAX_SAMPLES = 4096
BLOCK_ROWS = 256
MAX_CHANNELS = 32
MAX_CLASSES = 100


def measure_features(observed: Observed, reference: Reference) -> Mapping[str, np.ndarray]:
    """By name, one number per sample, of up to `MAX_SAMPLES` of the validation set, drawn by the job's seed."""
    samples = len(observed.feed.samples)
    rows = np.sort(np.random.default_rng(observed.rule.seed).permutation(samples)[:MAX_SAMPLES])
    return {
        **_of_inputs(observed.feed, rows),
        **_of_outputs(reference.values[rows]),
        **_of_labels(observed, rows),
    }


def describe_features(observed: Observed, features: Mapping[str, np.ndarray]) -> dict[str, FeatureHistogram]:
    """Their histograms, for the report."""
    classes = observed.judging.objective.classes or 0
    return {
        name: describe_classes(values, classes) if name.endswith(".class") and classes else describe(values)
        for name, values in features.items()
    }


def _of_inputs(feed: Feed, rows: np.ndarray) -> dict[str, np.ndarray]:
    blocks: list[dict[str, np.ndarray]] = []
    for start in range(0, len(rows), BLOCK_ROWS):
        found: dict[str, np.ndarray] = {}
        block = rows[start : start + BLOCK_ROWS]
        for name, form, array in zip(feed.samples.input_names, feed.forms, feed.samples.inputs, strict=True):
            found |= _of_input(f"input.{name}", form.tensor(array[block], "cpu"))
        blocks.append(found)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _of_input(name: str, tensor: torch.Tensor) -> dict[str, np.ndarray]:
    values = tensor.double().reshape(len(tensor), -1)
    found = {f"{name}.mean": values.mean(dim=1).numpy()}
    if values.shape[1] > 1:
        found[f"{name}.spread"] = values.std(dim=1).numpy()
    if tensor.dim() > 1 and 1 < tensor.shape[1] <= MAX_CHANNELS and tensor.is_floating_point():
        channels = tensor.double().flatten(2).mean(dim=2) if tensor.dim() > 2 else tensor.double()
        found |= {f"{name}[{number}].mean": channels[:, number].numpy() for number in range(channels.shape[1])}
    return found


def _of_outputs(outputs: np.ndarray) -> dict[str, np.ndarray]:
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        scores = torch.from_numpy(outputs).double()
        found = {"output.confidence": scores.softmax(dim=1).amax(dim=1).numpy()}
        return found | ({"output.class": outputs.argmax(axis=1)} if outputs.shape[1] <= MAX_CLASSES else {})
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    return {"output.mean": flat.mean(axis=1), "output.spread": flat.std(axis=1)}


def _of_labels(observed: Observed, rows: np.ndarray) -> dict[str, np.ndarray]:
    targets, objective = observed.feed.samples.targets, observed.judging.objective
    if targets is None or objective.task is not Task.CLASSIFICATION or not 1 < (objective.classes or 0) <= MAX_CLASSES:
        return {}
    numbers = np.asarray(targets[rows])
    if numbers.ndim == 2 and numbers.shape[1] > 1:
        numbers = numbers.argmax(axis=1)
    return {"target.class": numbers.reshape(len(rows), -1)[:, 0]}
