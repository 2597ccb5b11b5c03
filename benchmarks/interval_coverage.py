"""How often the report's 95 % intervals hold the truth, over simulated sets: the tables of `docs/statistics.md`.

Every cell draws new sets from a population whose true difference is known, and calls what the report calls.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation import means
from pruning_server.evaluation.means import difference_of_sums
from pruning_server.evaluation.proportions import PairedProportions

LEVEL = 0.95
FLOOR = 0.935
DRAWS = 2_000
RESAMPLES = 400
SIZES = (100, 250, 1_000, 5_000)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
LOPSIDED = (0.5, 0.75, 0.9, 1.0)
CORRELATION = 0.3

Sums = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Population:
    """What sets are drawn from: `draw` gives [draws, units] sums and [units] sizes."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, int, int], Sums]
    is_bounded: bool = False


@dataclass(frozen=True)
class Cell:
    """`covered`: share of the intervals that hold the truth; `width`: their median; `changed`: median units that differ."""

    name: str
    samples: int
    covered: float
    width: float
    changed: float

    @property
    def row(self) -> str:
        """Of a Markdown table."""
        mark = "" if self.covered >= FLOOR else " **below**"
        return f"| {self.name} | {self.samples} | {self.changed:.0f} | {self.covered:.1%}{mark} | {self.width:.4f} |"


def proportions(samples: int, rate: float, lost: float, draws: int, rng: np.random.Generator) -> Cell:
    """Independent samples of which a share `rate` is discordant, and of these a share `lost` is lost."""
    truth = rate * (1 - 2 * lost)
    pairs = rng.multinomial(samples, [rate * lost, rate * (1 - lost), 1 - rate], size=draws)[:, :2]

    @functools.cache
    def ends(right_to_wrong: int, wrong_to_right: int) -> tuple[float, float]:
        found = PairedProportions(right_to_wrong, wrong_to_right, samples).interval(LEVEL)
        return found.low, found.high

    found = np.array([ends(int(one), int(other)) for one, other in pairs])
    name = f"{rate:.1%} discordant, {lost:.0%} of them lost"
    return Cell(name, samples, *_summary(found, truth), float(np.median(pairs.sum(axis=1))))


def numbers(population: Population, samples: int, draws: int, rng: np.random.Generator) -> Cell:
    """Means of differences, of samples or of whole groups."""
    sums, sizes = population.draw(rng, draws, samples)
    found = []
    for one in sums:
        interval = difference_of_sums(
            one, sizes, seed=0, is_bounded=population.is_bounded, resamples=RESAMPLES
        ).interval(LEVEL)
        found.append((interval.low, interval.high))
    changed = float(np.median((sums != 0).sum(axis=1)))
    return Cell(population.name, samples, *_summary(np.array(found), population.truth), changed)


def _summary(ends: np.ndarray, truth: float) -> tuple[float, float]:
    low, high = ends.T
    return float(((low <= truth + 1e-12) & (truth <= high + 1e-12)).mean()), float(np.median(high - low))


def _alone(draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Callable[..., Sums]:
    return lambda rng, draws, samples: (draw(rng, (draws, samples)), np.ones(samples))


def _r2(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Terms of R2: squared errors of two models whose errors go together."""
    errors = rng.normal(0, 0.3, shape)
    return np.square(errors) - np.square(errors + rng.normal(0, 0.15, shape))


def _log_loss(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Negative log-likelihoods of two classifiers whose margins go together."""
    margins = rng.normal(3, 2, shape)
    changed = margins + rng.normal(-0.2, 0.7, shape)
    return np.asarray(np.logaddexp(0, -changed) - np.logaddexp(0, -margins))


def _elements(share: float) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    """Fractions of a sample's elements that are lost, in a share of the samples."""
    return lambda rng, shape: -1.0 * (rng.random(shape) < share) * rng.beta(1, 4, shape)


def _groups(rate: float, lost: float, size: int) -> Callable[[np.random.Generator, int, int], Sums]:
    """Right-or-wrong samples in groups of `size` on average, whose discordance goes together."""

    def draw(rng: np.random.Generator, draws: int, samples: int) -> Sums:
        sizes = _group_sizes(samples, size)
        scale = 1 / CORRELATION - 1
        chance = rng.beta(rate * scale, (1 - rate) * scale, (draws, len(sizes)))
        discordant = rng.binomial(sizes, chance)
        gained = rng.binomial(discordant, 1 - lost)
        return (2.0 * gained - discordant), sizes.astype(np.float64)

    return draw


def _group_sizes(samples: int, size: int) -> np.ndarray:
    rng, sizes = np.random.default_rng(size), []
    while sum(sizes) < samples:
        sizes.append(min(1 + int(rng.poisson(size - 1)), samples - sum(sizes)))
    return np.array(sizes)


def _log_loss_truth() -> float:
    return float(_log_loss(np.random.default_rng(5), (1, 4_000_000)).mean())


def populations() -> list[Population]:
    """Differences that are no right or wrong."""
    return [
        Population("normal", 0.0, _alone(lambda rng, shape: rng.normal(size=shape))),
        Population("Student t, 5 degrees", 0.0, _alone(lambda rng, shape: rng.standard_t(5, shape))),
        Population("exponential", 1.0, _alone(lambda rng, shape: rng.exponential(size=shape))),
        Population("lognormal, sigma 1", math.exp(0.5), _alone(lambda rng, shape: rng.lognormal(size=shape))),
        Population("squared errors (r2)", -(0.15**2), _alone(_r2)),
        Population("log loss", _log_loss_truth(), _alone(_log_loss)),
        Population("elements lost in 2 % of samples", -0.02 * 0.2, _alone(_elements(0.02)), is_bounded=True),
        Population("elements lost in 10 % of samples", -0.1 * 0.2, _alone(_elements(0.1)), is_bounded=True),
    ]


def grouped() -> list[Population]:
    """Right or wrong, in groups."""
    return [
        Population(
            f"groups of {size}, {rate:.0%} discordant, {lost:.0%} of them lost",
            rate * (1 - 2 * lost),
            _groups(rate, lost, size),
            is_bounded=True,
        )
        for size in (2, 5, 20)
        for rate in (0.02, 0.1)
        for lost in (0.5, 0.9)
    ]


def limits() -> list[Population]:
    """What no interval can tell: tails, or changes, that a set of this size has mostly not seen."""

    def rare(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return -1.0 * (rng.random(shape) < 0.02) * rng.exponential(size=shape)

    heavy = _alone(lambda rng, shape: rng.lognormal(0, 1.5, shape))
    return [
        Population("lognormal, sigma 1.5", math.exp(1.125), heavy),
        Population("unbounded loss in 2 % of samples", -0.02, _alone(rare)),
    ]


def tables(draws: int, sizes: tuple[int, ...]) -> Iterator[tuple[str, Iterator[Cell]]]:
    """Titles and cells."""
    yield (
        "Right or wrong, independent samples",
        (
            proportions(n, rate, lost, draws, np.random.default_rng([n, int(rate * 1e4), int(lost * 100)]))
            for n in sizes
            for rate in RATES
            for lost in LOPSIDED
            if rate * n >= 1
        ),
    )
    for title, listed, shown in (
        ("Numbers", populations(), sizes),
        ("Right or wrong, in groups that go together", grouped(), sizes),
        ("Limits", limits(), (100, 1_000)),
    ):
        cells = (
            numbers(one, n, draws, np.random.default_rng([n, place])) for place, one in enumerate(listed) for n in shown
        )
        yield title, cells


def share_resamples() -> None:
    """Lets all sets of a size share their resamples, which a simulation need not draw anew."""
    draw = means._resampled_counts

    @functools.lru_cache(maxsize=2)
    def blocks(count: int, resamples: int) -> tuple[np.ndarray, ...]:
        return tuple(block.copy() for block in draw(count, resamples, np.random.default_rng(count)))

    def shared(count: int, resamples: int, _: np.random.Generator) -> Iterator[np.ndarray]:
        yield from blocks(count, resamples)

    means._resampled_counts = shared


def main() -> int:
    """Prints the tables; 1 where a cell outside the limits is below the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    share_resamples()
    worst = 1.0
    for title, cells in tables(options.draws, tuple(options.sizes)):
        print(
            f"\n### {title}\n\n| population | samples | changed | covered | width |\n|---|--:|--:|--:|--:|", flush=True
        )
        for cell in cells:
            print(cell.row, flush=True)
            worst = worst if title == "Limits" else min(worst, cell.covered)
    print(f"\nLeast outside the limits: {worst:.1%}")
    return int(worst < FLOOR)


if __name__ == "__main__":
    sys.exit(main())
