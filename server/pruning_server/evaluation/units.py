"""Which samples must stay in one part: exact duplicates of each other, and what the caller groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_DIGEST_BYTES = 16


def find_units(inputs: Sequence[np.ndarray], groups: np.ndarray | None) -> np.ndarray:
    """Returns [N] int64: the unit of each sample, numbered from 0 in the order of first occurrence.

    Two samples are of one unit if all of their inputs are equal byte for byte, or if they share a group, or if a chain
    of such pairs connects them.

    Args:
        inputs: at least one array [N, ...].
        groups: [N] integers or strings, or None.
    """
    duplicates = _numbered(_digests(inputs))
    if groups is None:
        return duplicates
    return _numbered(_connected(duplicates, np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)))


def _digests(inputs: Sequence[np.ndarray]) -> np.ndarray:
    count = len(inputs[0])
    digests = np.empty(count, dtype=f"S{2 * _DIGEST_BYTES}")
    for row in range(count):
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for array in inputs:
            digest.update(np.asarray(array[row]).tobytes())
        digests[row] = digest.hexdigest().encode()
    return digests


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Numbers equal labels alike, in the order of first occurrence."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _connected(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Labels the connected components of the samples, where sharing either label connects.

    The smaller label is handed on, alternately by both, until nothing changes; as many rounds as the longest chain.
    """
    labels = np.arange(len(left), dtype=np.int64)
    while True:
        before = labels
        for key in (left, right):
            smallest = np.full(int(key.max()) + 1, len(labels), dtype=np.int64)
            np.minimum.at(smallest, key, labels)
            labels = smallest[key]
        if np.array_equal(labels, before):
            return labels
