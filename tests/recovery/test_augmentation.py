"""Variants are shown only where the original answers them as it answers the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from helpers.lessons import TensorData
from pruning_server.recovery.augmentation import Augmentation, find_augmentation
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.spec.request import Loss, Task

LABELS = Objective(task=Task.CLASSIFICATION, loss=Loss.CROSS_ENTROPY, form=TargetForm.LABELS, classes=2)
AGREEMENT = Objective(task=Task.AGREEMENT, loss=Loss.MSE, form=TargetForm.NONE)
VALUES = Objective(task=Task.REGRESSION, loss=Loss.MSE, form=TargetForm.VALUES)


class Answering:
    """The teacher port over a function of images."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.answer = answer

    def outputs(self, inputs: Sequence[object]) -> torch.Tensor:
        (images,) = inputs
        assert isinstance(images, torch.Tensor)
        return self.answer(images)


def brightness(images: torch.Tensor) -> torch.Tensor:
    value = images[:, :, 6:10, 6:10].mean(dim=(1, 2, 3))
    return torch.stack([value, -value], dim=1)


def left_or_right(images: torch.Tensor) -> torch.Tensor:
    half = images.shape[3] // 2
    value = images[..., :half].mean(dim=(1, 2, 3)) - images[..., half:].mean(dim=(1, 2, 3))
    return torch.stack([value, -value], dim=1)


def images_of(samples: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right, top = (torch.randn(samples, 1, 1, 1, generator=generator) for _ in range(3))
    images = torch.zeros(samples, *shape) + top
    half = shape[2] // 2
    images[..., :half] += left
    images[..., half:] += right
    return images


def found(
    answer: Callable[[torch.Tensor], torch.Tensor], objective: Objective, images: torch.Tensor
) -> Augmentation | None:
    reference = answer(images)
    data = TensorData(images, reference.argmax(dim=1) if objective is LABELS else None, reference)
    return find_augmentation(data, Answering(answer), objective, None, seed=0)


@pytest.mark.parametrize("objective", [LABELS, AGREEMENT], ids=["labels", "none"])
def test_what_changes_the_meaning_is_not_shown(objective: Objective) -> None:
    images = images_of(200, 3, 16, 16)
    for answer, flips in ((brightness, True), (left_or_right, False)):
        augmentation = found(answer, objective, images + 0.0 if flips else images)
        assert (augmentation is not None and augmentation.flips) == flips


@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 16, 16), (3, 16, 12)])
def test_other_tensors_are_no_images(shape: tuple[int, ...]) -> None:
    assert found(brightness, AGREEMENT, images_of(20, *shape)) is None


def test_targets_that_would_have_to_move_along_forbid_it() -> None:
    images = images_of(20, 3, 16, 16)
    data = TensorData(images, brightness(images), brightness(images))
    assert find_augmentation(data, Answering(brightness), VALUES, None, seed=0) is None


def test_variants_are_the_images_mirrored_and_moved() -> None:
    images = torch.arange(4 * 2 * 16 * 16, dtype=torch.float32).reshape(4, 2, 16, 16) + 1
    flipped = Augmentation(0, flips=True, shift=0)
    (shown,) = flipped.apply((images,), np.random.default_rng(0))
    assert isinstance(shown, torch.Tensor)
    same = [torch.equal(one, other) for one, other in zip(shown, images, strict=True)]
    mirrored = [torch.equal(one.flip(2), other) for one, other in zip(shown, images, strict=True)]
    assert all(one != other for one, other in zip(same, mirrored, strict=True))
    (moved,) = Augmentation(0, flips=False, shift=2).apply((images,), np.random.default_rng(1))
    assert isinstance(moved, torch.Tensor)
    assert moved.shape == images.shape
    inner = images[:, :, 4:12, 4:12]
    for one, middle in zip(moved, inner, strict=True):
        windows = one.unfold(1, 8, 1).unfold(2, 8, 1).movedim(0, 2)
        assert any(torch.equal(window, middle) for row in windows for window in row)


def test_a_seed_gives_the_same_variants() -> None:
    images = images_of(30, 3, 16, 16) + torch.randn(30, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    augmentation = Augmentation(0, flips=True, shift=2)
    one, other, third = (augmentation.apply((images,), np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, other)  # type: ignore[arg-type]
    assert not torch.equal(one, third)  # type: ignore[arg-type]
