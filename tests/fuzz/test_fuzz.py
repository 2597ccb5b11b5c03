"""Mutated archives, datasets and requests: every one is taken or refused with a reason. More of them: `make fuzz`."""

from __future__ import annotations

import io
from random import Random

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from helpers.archives import GOOD, checked, refusal_of, repacked
from helpers.mutations import mutated_archive, mutated_dataset, mutated_message
from pruning_api.v1 import spec_pb2
from pruning_server.archive.dataset import check_dataset
from pruning_server.errors import InvalidRequestError
from pruning_server.service.converters_spec import spec_from_wire

COUNT = 80
ARRAYS = {"inputs": np.ones((6, 4), np.float32), "targets": np.arange(6)}


@pytest.mark.parametrize("seed", range(3))
def test_archives(seed: int) -> None:
    chance = Random(seed)
    good = [make() for make, _ in GOOD.values()]
    refused = 0
    for _ in range(COUNT):
        archive = mutated_archive(chance, good)
        error = refusal_of(lambda archive=archive: checked(archive))
        if error is None:
            # What the gate writes is what it takes.
            assert repacked(repacked(archive)) == repacked(archive)
            continue
        refused += 1
        assert error.reason.value.startswith("MODEL_")
        assert error.message.isprintable()
    assert refused > COUNT // 3


@pytest.mark.parametrize("seed", range(3))
def test_datasets(seed: int) -> None:
    chance = Random(seed)
    refused = 0
    for _ in range(COUNT):
        dataset = mutated_dataset(chance, ARRAYS)
        error = refusal_of(lambda dataset=dataset: check_dataset(io.BytesIO(dataset)))
        if error is not None:
            refused += 1
            assert error.reason.value.startswith("DATASET_")
            assert error.message.isprintable()
    assert refused > COUNT // 3


@pytest.mark.parametrize("seed", range(3))
def test_specs(seed: int) -> None:
    chance = Random(seed)
    good = spec_pb2.PruningSpec(
        model=spec_pb2.ArtifactSource(artifact_id="0" * 32),
        validation=spec_pb2.ArtifactSource(artifact_id="1" * 32),
        static=spec_pb2.StaticStrategy(),
        sparsity=0.5,
    )
    spec_from_wire(good)
    refused = 0
    for _ in range(COUNT * 3):
        message = spec_pb2.PruningSpec()
        try:
            message.ParseFromString(mutated_message(chance, good))
            spec_from_wire(message)
        except DecodeError:
            continue
        except InvalidRequestError:
            refused += 1
    assert refused > COUNT // 3
