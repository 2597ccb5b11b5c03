"""What is measured of each net, and what has to come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accuracy.ours import Asked
from accuracy.results import Measured
from accuracy.task import Arrays, Task, sample_of, with_marks
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind

MACS_RATIO, SPEED_UP, FEW, POINTS = 0.5, 1.6, 500, 1.0
CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL, criterion="l1", scope=Scope.SENSITIVITY)
WEIGHTS = StaticStrategy(granularity=Granularity.WEIGHT, criterion="l1")
HALF = Target(kind=TargetKind.MACS_RATIO, value=MACS_RATIO)


@dataclass(frozen=True)
class Required:
    """What every seed has to come to; None: not asked for.

    Attributes:
        accuracy: percent, at least; `points`: that much below the original's, at most.
        speed_up: original / pruned, at least; `bytes_ratio`, `seconds`: at most.
        beats: the setting that it must not be worse than, seed by seed.
        peer: percent, the best that Torch-Pruning was found to reach.
    """

    accuracy: float | None = None
    points: float | None = None
    speed_up: float | None = None
    bytes_ratio: float | None = None
    seconds: float | None = None
    beats: str | None = None
    peer: float | None = None

    def failures(self, measured: Measured, other: Measured | None) -> list[str]:
        """What one seed misses, in words."""
        missed = []
        if self.accuracy is not None and measured.accuracy < self.accuracy:
            missed.append("accuracy")
        if self.points is not None and measured.accuracy < measured.original - self.points:
            missed.append("accuracy")
        if self.speed_up is not None and (measured.speed_up or 0.0) < self.speed_up:
            missed.append("speed-up")
        if self.bytes_ratio is not None and (measured.bytes_ratio or 1.0) > self.bytes_ratio:
            missed.append("bytes")
        if self.seconds is not None and measured.seconds >= self.seconds:
            missed.append("time")
        if self.beats is not None and (other is None or measured.accuracy < other.accuracy):
            missed.append("worse than without fine-tuning")
        return missed


@dataclass(frozen=True)
class Setting:
    """A job of this service on one net, by its name in the table."""

    name: str
    asked: Asked
    data: Callable[[Task, int], Arrays]
    required: Required
    timed: bool = True


def _marked(task: Task, seed: int) -> Arrays:
    return with_marks(task.caller, seed)


def _few(task: Task, seed: int) -> Arrays:
    return sample_of(task.caller, FEW, seed)


def _whole(task: Task, seed: int) -> Arrays:  # noqa: ARG001 - every setting says what of the set its seed gets
    return task.caller


CLOSED_FORM, TWO_EPOCHS, DEFAULT = "no gradient step", "2 epochs", "default recovery"
FEW_CLOSED_FORM, FEW_DEFAULT = f"{FEW} images, no gradient step", f"{FEW} images, default recovery"


def _halved(required: dict[str, Required]) -> tuple[Setting, ...]:
    few = Required(beats=FEW_CLOSED_FORM)
    return (
        Setting(CLOSED_FORM, Asked(CHANNELS, HALF, 0), _marked, required[CLOSED_FORM]),
        Setting(TWO_EPOCHS, Asked(CHANNELS, HALF, 2), _marked, required[TWO_EPOCHS]),
        Setting(DEFAULT, Asked(CHANNELS, HALF, None), _marked, required[DEFAULT]),
        Setting(FEW_CLOSED_FORM, Asked(CHANNELS, HALF, 0), _few, Required(), timed=False),
        Setting(FEW_DEFAULT, Asked(CHANNELS, HALF, None), _few, few, timed=False),
    )


def _sparse(sparsity: float, data: Callable[[Task, int], Arrays], bytes_ratio: float | None) -> Setting:
    target = Target(kind=TargetKind.SPARSITY, value=sparsity)
    required = Required(points=POINTS, bytes_ratio=bytes_ratio)
    return Setting(f"{sparsity:.0%} of the weights", Asked(WEIGHTS, target, None), data, required, timed=False)


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "ResNet-20": _halved(
        {
            CLOSED_FORM: Required(accuracy=74.0, speed_up=SPEED_UP, peer=23.0),
            TWO_EPOCHS: Required(accuracy=82.0, speed_up=SPEED_UP, peer=77.9),
            DEFAULT: Required(accuracy=84.0, speed_up=SPEED_UP, seconds=300.0),
        }
    ),
    "ResNet-56": (
        *_halved(
            {
                CLOSED_FORM: Required(accuracy=82.0, speed_up=SPEED_UP, peer=58.5),
                TWO_EPOCHS: Required(accuracy=86.2, speed_up=SPEED_UP, peer=84.7),
                DEFAULT: Required(accuracy=87.0, speed_up=SPEED_UP, seconds=900.0),
            }
        ),
        _sparse(0.8, _marked, None),
    ),
    "digits net": (_sparse(0.9, _whole, 0.25),),
}
"""By the name of the net."""

PEER_MODELS, PEER_CRITERIA, PEER_EPOCHS = ("ResNet-20", "ResNet-56"), ("L1", "L2", "Taylor"), 2
