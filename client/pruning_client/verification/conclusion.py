"""What can be concluded of the effects, in one sentence, by fixed rules; also that it cannot be told."""

from __future__ import annotations

import enum

from pruning_client.reading import interval_text, metric_text
from pruning_client.verification.effects import Effect, Effects


class Reading(enum.StrEnum):
    """What an effect's interval says of a loss.

    `LOSS`: there is one of the margin or more, or nobody knows how large; `SMALL_LOSS`: there is one, below the margin;
    `GAIN`: there is none at all, but a gain; `NO_LOSS`: one of the margin or more is ruled out; `OPEN`: there may be one or
    not.
    """

    LOSS = "loss"
    SMALL_LOSS = "small loss"
    GAIN = "gain"
    NO_LOSS = "no loss"
    OPEN = "open"


def read(effect: Effect, margin: float) -> Reading:
    """What the interval says; `margin`: the largest loss that is acceptable."""
    if effect.high < 0:
        return Reading.SMALL_LOSS if effect.low > -margin else Reading.LOSS
    if effect.low > 0:
        return Reading.GAIN
    return Reading.NO_LOSS if effect.low > -margin else Reading.OPEN


_LOSSES = (Reading.LOSS, Reading.SMALL_LOSS)


def conclude(effects: Effects, metric: str, margin: float, *, is_against_original: bool) -> str:
    """The answer to the paper's question, as far as the effects give one.

    Args:
        effects: on the area under the occlusion curve.
        metric: its name.
        margin: the largest acceptable loss.
        is_against_original: whether the effect of the parameters is that of pruned models against the original.
    """
    parameters, dropout = effects.parameters, effects.dropout
    if parameters is None:
        return "Cannot be told: there are no two models to compare on the same samples."
    removed = f"removing {'parameters' if is_against_original else 'more parameters'}"
    cost = f"{removed} changed {metric} under occlusion by {_shown(parameters, metric)}"
    one = _loss_of(parameters, margin)
    if dropout is None:
        lead = {
            Reading.LOSS: "The parameters removed cost generalization",
            Reading.SMALL_LOSS: "The parameters removed cost a little, less than the margin",
            Reading.NO_LOSS: "No loss from the parameters removed",
            Reading.OPEN: "Cannot be told",
        }[one]
        return f"{lead}: {cost}; dropout was not varied, so that nothing is said of it."
    lowered = f"lowering dropout by {_shown(dropout, metric)}"
    return f"{_lead(one, _loss_of(dropout, margin), parameters, dropout)}: {cost}, {lowered}."


def _loss_of(effect: Effect, margin: float) -> Reading:
    """As read, where a gain is no loss."""
    reading = read(effect, margin)
    return Reading.NO_LOSS if reading is Reading.GAIN else reading


def _lead(parameters: Reading, dropout: Reading, one: Effect, other: Effect) -> str:
    if parameters in _LOSSES and dropout in _LOSSES:
        larger = "the parameters removed" if one.delta < other.delta else "lowered dropout"
        return f"Both: generalization is lost to the parameters removed and to lowered dropout, more to {larger}"
    if parameters in _LOSSES:
        small = ", by less than the margin" if parameters is Reading.SMALL_LOSS else ""
        if dropout is Reading.NO_LOSS:
            return f"Generalization is lost to the parameters removed{small}, not to lowered dropout"
        return f"Generalization is lost to the parameters removed{small}; whether lowered dropout adds to it cannot be told"
    if dropout in _LOSSES:
        small = ", by less than the margin" if dropout is Reading.SMALL_LOSS else ""
        if parameters is Reading.NO_LOSS:
            return f"Generalization is lost to lowered dropout{small}, not to the parameters removed"
        return (
            f"Generalization is lost to lowered dropout{small}; whether the parameters removed add to it cannot be told"
        )
    if parameters is Reading.NO_LOSS and dropout is Reading.NO_LOSS:
        return "Neither: a loss of the margin is ruled out for both"
    open_one = {
        (Reading.OPEN, Reading.OPEN): "either",
        (Reading.OPEN, Reading.NO_LOSS): "the parameters removed, though it is not lost to lowered dropout",
        (Reading.NO_LOSS, Reading.OPEN): "lowered dropout, though it is not lost to the parameters removed",
    }[parameters, dropout]
    return f"Cannot be told: with so few samples, generalization may or may not be lost to {open_one}"


def _shown(effect: Effect, metric: str) -> str:
    ends = interval_text(metric, (effect.low, effect.high))
    return f"{metric_text(metric, effect.delta, signed=True)} {ends}"
