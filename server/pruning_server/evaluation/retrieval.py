"""Whether embeddings still find the same neighbours: the nearest of each sample among the others, by cosine."""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 10
# Every sample is compared with every other.
MAX_GALLERY = 4_096
_BLOCK_ROWS = 512


def gallery_rows(samples: int) -> np.ndarray:
    """Positions of the samples that are compared, evenly spread where there are many."""
    if samples <= MAX_GALLERY:
        return np.arange(samples)
    return np.linspace(0, samples - 1, MAX_GALLERY).astype(np.int64)


def nearest(embeddings: np.ndarray, count: int) -> np.ndarray:
    """[n, count] positions of each sample's nearest others, nearest first; of equally near ones the first.

    Args:
        embeddings: [n, ...], flattened; one of length 0 is like nothing.
        count: at most n - 1.
    """
    rows = np.asarray(embeddings, np.float64).reshape(len(embeddings), -1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    found = np.empty((len(units), count), dtype=np.int64)
    for start in range(0, len(units), _BLOCK_ROWS):
        # Rounded, so that copies of a sample are equally near however the product was summed.
        likeness = np.round(units[start : start + _BLOCK_ROWS] @ units.T, 9)
        likeness[np.arange(len(likeness)), start + np.arange(len(likeness))] = -np.inf
        found[start : start + len(likeness)] = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n] shares of the neighbours [n, k] that both have, in any order."""
    return np.asarray((first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1))


def recalls(neighbours: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[n] whether the wanted position [n] is among the neighbours [n, k]."""
    return np.asarray((neighbours == wanted[:, None]).any(axis=1), dtype=np.float64)


def recalls_label(neighbours: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n] whether a neighbour has the sample's label, and whether any other sample has it at all."""
    found = (labels[neighbours] == labels[:, None]).any(axis=1)
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    possible = counts[places.reshape(-1)] > 1
    return np.asarray(found & possible, dtype=np.float64), possible.astype(np.float64)
