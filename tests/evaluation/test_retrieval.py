"""Neighbours of embeddings, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from pruning_server.evaluation import retrieval


def test_neighbours_are_those_of_scikit_learn() -> None:
    embeddings = np.random.default_rng(0).normal(size=(700, 6)).astype(np.float32)
    found = retrieval.nearest(embeddings, 5)
    wanted = NearestNeighbors(n_neighbors=6, metric="cosine").fit(embeddings).kneighbors(return_distance=True)[1]
    assert np.mean(retrieval.overlap(found, wanted[:, :5])) > 0.999


def test_a_sample_is_not_its_own_neighbour_and_copies_are_found_in_order() -> None:
    embeddings = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    found = retrieval.nearest(embeddings, 2)
    assert found[0].tolist() == [1, 3]
    assert found[1].tolist() == [0, 3]
    assert found[3].tolist() == [0, 1]
    assert 4 not in found[4]


def test_overlap_and_recall() -> None:
    first, second = np.array([[1, 2], [0, 2], [0, 1]]), np.array([[2, 1], [2, 3], [3, 4]])
    assert retrieval.overlap(first, second).tolist() == [1.0, 0.5, 0.0]
    assert retrieval.recalls(second, first[:, 0]).tolist() == [1.0, 0.0, 0.0]


def test_labels_that_only_one_sample_has_cannot_be_found() -> None:
    neighbours, labels = np.array([[1], [2], [0], [0]]), np.array([7, 7, 8, 9])
    found, possible = retrieval.recalls_label(neighbours, labels)
    assert found.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert possible.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("samples", "kept"), [(10, 10), (retrieval.MAX_GALLERY + 5, retrieval.MAX_GALLERY)])
def test_large_sets_are_thinned_evenly(samples: int, kept: int) -> None:
    rows = retrieval.gallery_rows(samples)
    assert (len(rows), rows[0], rows[-1]) == (kept, 0, samples - 1)
    assert len(np.unique(rows)) == kept
