"""Images shown in other ways: mirrored, and shifted by a few pixels, where the original does not mind.

Student and original see the same variant, so that there is a target for it. Whether a variant means the same as the image
is asked of the original: digits must not be mirrored.

Source: He, Zhang, Ren and Sun, 2016, arXiv 1512.03385 (flips and padded crops); Beyer et al., 2022, arXiv 2106.05237
(teacher and student on the same views).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Batch, FitData, Teacher

MIN_SIDE, MAX_IMAGE_CHANNELS = 16, 4
SHIFT_SHARE = 1 / 8
ASKED_SAMPLES = 512
MAX_LOST_ACCURACY = 0.01
# Of the spread between samples; a mirrored photograph changes a tenth, one that is upside down more than half.
MAX_CHANGE = 0.2


@dataclass(frozen=True)
class Augmentation:
    """Which variants are shown.

    Attributes:
        image: position of the image [N, C, H, W] among the arguments of forward.
        flips: mirrored left to right, every second time.
        shift: pixels by which it is moved at most, in both directions; what is moved in is 0.
    """

    image: int
    flips: bool
    shift: int

    def apply(self, inputs: Sequence[object], generator: np.random.Generator) -> tuple[object, ...]:
        """The arguments with the images of this batch as drawn."""
        image = inputs[self.image]
        if not isinstance(image, torch.Tensor):
            return tuple(inputs)
        shown = self._shifted(image, generator) if self.shift else image
        if self.flips:
            mirrored = torch.from_numpy(generator.random(len(image)) < 0.5).to(image.device)
            shown = torch.where(mirrored[:, None, None, None], shown.flip(3), shown)
        return tuple(shown if place == self.image else value for place, value in enumerate(inputs))

    def _shifted(self, image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        padded = functional.pad(image, [self.shift] * 4)
        windows = padded.unfold(2, image.shape[2], 1).unfold(3, image.shape[3], 1)
        drawn = torch.from_numpy(generator.integers(0, 2 * self.shift + 1, size=(2, len(image)))).to(image.device)
        return windows[torch.arange(len(image), device=image.device), :, drawn[0], drawn[1]]


def find_augmentation(
    data: FitData, teacher: Teacher, objective: Objective, exact_batch: int | None, seed: int
) -> Augmentation | None:
    """The variants that mean the same to the original as the images themselves; None where there are none."""
    count = exact_batch or min(ASKED_SAMPLES, data.samples)
    if count > data.samples or objective.form in {TargetForm.VALUES, TargetForm.ELEMENTS}:
        # Of targets such as masks and boxes nobody knows how they would have to move along.
        return None
    batch = data.batch(np.random.default_rng(seed).permutation(data.samples)[:count].tolist())
    place = _image_place(batch.inputs)
    if place is None or batch.reference.dim() != 2:
        return None
    image = batch.inputs[place]
    side = min(image.shape[2:]) if isinstance(image, torch.Tensor) else 0
    wanted = Augmentation(place, flips=True, shift=max(1, int(side * SHIFT_SHARE)))
    mirrored, shifted = (
        _means_the_same(replace(wanted, **off), batch, teacher, objective, seed)
        for off in ({"shift": 0}, {"flips": False})
    )
    found = Augmentation(place, flips=mirrored, shift=wanted.shift if shifted else 0)
    return found if found.flips or found.shift else None


def _image_place(inputs: Sequence[object]) -> int | None:
    """Where the only tensor is that can be an image."""
    tensors = [(place, one) for place, one in enumerate(inputs) if isinstance(one, torch.Tensor)]
    if len(tensors) != 1:
        return None
    place, one = tensors[0]
    image = one.dim() == 4 and one.is_floating_point() and 1 <= one.shape[1] <= MAX_IMAGE_CHANNELS
    return place if image and min(one.shape[2:]) >= MIN_SIDE else None


def _means_the_same(
    augmentation: Augmentation, batch: Batch, teacher: Teacher, objective: Objective, seed: int
) -> bool:
    """Whether the original does about as well on the variants; by its own answers where there is no target."""
    outputs = teacher.outputs(augmentation.apply(batch.inputs, np.random.default_rng(seed)))
    if outputs.shape != batch.reference.shape or not bool(torch.isfinite(outputs).all()):
        return False
    reference = batch.reference.to(outputs)
    target = batch.target
    if target is not None and objective.form in {TargetForm.LABELS, TargetForm.ONE_HOT}:
        lost = _hits(reference, target) - _hits(outputs, target)
        error = lost.std(correction=0) / max(1, len(lost)) ** 0.5
        return float(lost.mean()) <= MAX_LOST_ACCURACY + float(error)
    spread = (reference - reference.mean(dim=0)).square().mean().clamp_min(1e-12)
    return float((outputs - reference).square().mean() / spread) <= MAX_CHANGE


def _hits(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(dim=1) == labels.to(outputs.device)).double()
