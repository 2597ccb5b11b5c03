"""Samples of the report split made harder, and fed to a model as the others are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pruning_server.evaluation.robustness import OCCLUSION, find, names_for
from pruning_server.evaluation.robustness.base import InputFacts, Perturbation, perturb
from pruning_server.evaluation.robustness.kinds import Recognised, recognise
from pruning_server.spec.report_robustness import PerturbedInput
from pruning_server.worker.feeding import Feed
from pruning_server.worker.forms import InputForm

BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Curve:
    """One way to make the inputs harder.

    Attributes:
        name: of the curve.
        unit: of its levels.
        target: what it acts on.
        levels: that are asked for, ascending and above 0.
        realized: what comes of them: whole pixels, tokens and features only.
    """

    name: str
    unit: str
    target: str
    levels: tuple[float, ...]
    realized: tuple[float, ...]


@dataclass(frozen=True)
class HarderInputs:
    """Makes samples harder as they are stored, before any preprocessing, so that images are changed pixel by pixel.

    Attributes:
        feed: of the unchanged samples.
        found: what each input is.
        seed: of everything random.
    """

    feed: Feed
    found: tuple[Recognised, ...]
    seed: int

    @classmethod
    def of(cls, feed: Feed, rows: np.ndarray, seed: int) -> HarderInputs:
        """Recognises the inputs by these samples, which are those that will be run."""
        found = tuple(
            recognise(
                _values(array, form, rows) if form.bfloat16_bits else array,
                np.arange(len(rows)) if form.bfloat16_bits else rows,
                is_index=not form.dtype.is_floating_point,
                channels_last=form.channels_last,
            )
            for array, form in zip(feed.samples.inputs, feed.forms, strict=True)
        )
        return cls(feed, found, seed)

    def described(self) -> tuple[PerturbedInput, ...]:
        """What each input was taken for."""
        return tuple(
            PerturbedInput(name=name, kind=None if one.facts is None else one.facts.kind.value, reason=one.reason)
            for name, one in zip(self.feed.samples.input_names, self.found, strict=True)
        )

    def curves(self, *, occlusion_only: bool) -> tuple[Curve, ...]:
        """Everything that can be done to the inputs that were recognised."""
        kinds = frozenset(one.facts.kind for one in self.found if one.facts is not None)
        names = [name for name in names_for(kinds) if name == OCCLUSION or not occlusion_only]
        return tuple(self._curve(name) for name in names)

    def _curve(self, name: str) -> Curve:
        acting = self._acting(name)
        levels: dict[float, float] = {}
        for level in acting[0][1].levels:
            got = [one.realize(level, self.feed.samples.inputs[place].shape[1:], facts) for place, one, facts in acting]
            levels.setdefault(float(np.mean(got)), level)
        units = dict.fromkeys(one.unit for _, one, _ in acting)
        targets = dict.fromkeys(one.target for _, one, _ in acting)
        return Curve(name, "; ".join(units), "+".join(targets), tuple(levels.values()), tuple(levels))

    def _acting(self, name: str) -> list[tuple[int, Perturbation, InputFacts]]:
        """Inputs by position, with what that curve does to them."""
        found = []
        for place, one in enumerate(self.found):
            perturbation = None if one.facts is None else find(name, one.facts.kind)
            if one.facts is not None and perturbation is not None:
                found.append((place, perturbation, one.facts))
        return found

    def blocks(
        self, curve: Curve | None, level: float, draw: int, rows: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, Feed]]:
        """Yields rows and a feed of their harder inputs, where they are numbered from 0; without a curve unchanged."""
        samples, forms = self.feed.samples, self.feed.forms
        each = sum(array[:1].nbytes for array in samples.inputs)
        size = max(1, BLOCK_BYTES // max(1, each) // batch_size) * batch_size
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            inputs = [_values(array, form, part) for array, form in zip(samples.inputs, forms, strict=True)]
            for place, perturbation, facts in [] if curve is None else self._acting(curve.name):
                inputs[place] = perturb(
                    perturbation, inputs[place], level, facts, seed=self._stream(place), rows=part, draw=draw
                )
            alone = replace(samples, inputs=tuple(inputs), targets=None, split=None, groups=None)
            yield part, replace(self.feed, samples=alone, forms=tuple(replace(f, bfloat16_bits=False) for f in forms))

    def _stream(self, place: int) -> int:
        """Inputs of one sample are changed independently of each other."""
        return int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])


def _values(array: np.ndarray, form: InputForm, rows: np.ndarray) -> np.ndarray:
    """These rows in memory; bfloat16, of which numpy knows nothing, as float32."""
    values = np.array(array[rows])
    # bfloat16 is the upper half of a float32.
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32) if form.bfloat16_bits else values
