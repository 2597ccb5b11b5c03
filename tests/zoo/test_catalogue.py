"""What is in the zoo, and that the same archive is made each time."""

from __future__ import annotations

import torch

from zoo.catalogue import archives, catalogue, find
from zoo.entries import Form

# What the zoo is to hold at least, whatever its packages have.
FAMILIES = {
    "plain", "residual", "dense", "inception", "grouped", "depthwise", "SE", "shuffle", "U-Net", "segmentation", "ViT",
    "Swin", "ConvNeXt", "BERT", "GPT", "LSTM", "GRU", "audio", "policies",
}  # fmt: skip


def test_names_are_unique_and_there_are_enough() -> None:
    names = [entry.name for entry in catalogue()]
    assert len(set(names)) == len(names) >= 60
    assert len(list(archives())) >= 100


def test_every_family_is_there() -> None:
    assert {entry.family for entry in catalogue()} >= FAMILIES


def test_inputs_repeat_and_have_the_batch_size_that_was_asked_for() -> None:
    for entry in catalogue():
        for batch in entry.batches:
            first, again = entry.inputs(batch), entry.inputs(batch)
            assert len(first) == len(again)
            for one, other in zip(first, again, strict=True):
                if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
                    assert one.shape[0] == batch, entry.name
                    assert torch.equal(one, other), entry.name


def test_what_is_stuck_says_why() -> None:
    assert all(len(entry.stuck) > 20 for entry in catalogue() if entry.stuck)


def test_files_come_as_they_are() -> None:
    assert find("silero-vad").forms == (Form.FILE,)
