"""Single weights that are switched off while the rest is trained: nested choices by exact count, and exchange per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pruning_server.graph.values import FrozenUse
from pruning_server.pruning.dynamic.units import Gradient, Reach
from pruning_server.pruning.ranking import lowest
from pruning_server.pruning.strategies.static_nm import least_of
from pruning_server.pruning.values import Mask, PruningPlan, ScoredInput
from pruning_server.spec.request import NmPattern, Scope

Scores = Callable[[], Sequence[torch.Tensor]]
"""Scores of every weight as it is now, in the weights' order, each of its weight's shape; the lowest go first."""


Choose = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], float], Sequence[torch.Tensor]]
"""(scores, what is off, way to the target in [0, 1]) -> what is off then, by weight; what was off stays so."""


class WeightUnits:
    """Fills `Units` for single weights.

    Args:
        weights: what may be pruned, with the tensors that are trained.
        scores: what each element is worth now.
        choose: the rule, by count or by pattern.
        frozen: what stays, for the plan.
        notes: for the plan.
    """

    def __init__(
        self,
        weights: Sequence[ScoredInput],
        scores: Scores,
        choose: Choose,
        frozen: tuple[FrozenUse, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self._weights = tuple(weights)
        self._scores = scores
        self._choose = choose
        self._frozen = frozen
        self._notes = notes
        self._off = [torch.zeros(one.tensor.shape, dtype=torch.bool) for one in self._weights]
        self._places = self._off

    @property
    def reach(self) -> Reach:
        """See `Units`."""
        removed, units = sum(int(off.sum()) for off in self._off), sum(off.numel() for off in self._off)
        return Reach(removed, units, removed / units if units else 0.0)

    def advance(self, way: float) -> None:
        """See `Units`."""
        self._set(self._choose(self._present_scores(), self._off, way))

    def reselect(self, way: float) -> None:
        """See `Units`."""
        nothing = [torch.zeros_like(off) for off in self._off]
        self._set(self._choose(self._present_scores(), nothing, way))

    def exchange(self, share: float, gradient: Gradient) -> int:
        """Per weight, as RigL does: what is off is compared with what has just made place, too."""
        came_back, changed = 0, []
        for weight, off, score in zip(self._weights, self._off, self._present_scores(), strict=True):
            grad = gradient(weight.name)
            count = 0 if grad is None else min(int(share * int((~off).sum())), int(off.sum()))
            if grad is None or not count:
                changed.append(off)
                continue
            dropped = off | _lowest_of(score, ~off, count)
            grown = _highest_of(grad.detach().abs().double().cpu(), dropped, count)
            came_back += int((grown & off).sum())
            changed.append(dropped & ~grown)
        self._set(changed)
        return came_back

    def resume(self, zeros: Mapping[str, torch.Tensor]) -> None:
        """Goes on from the weights that an earlier job left at 0, by name; nothing may be off yet."""
        self._set([zeros.get(one.name, off).cpu() for one, off in zip(self._weights, self._off, strict=True)])

    def hold(self) -> None:
        """See `Units`."""
        with torch.no_grad():
            for weight, place in zip(self._weights, self._places, strict=True):
                weight.tensor.masked_fill_(place, 0.0)

    def off(self) -> Mapping[str, torch.Tensor]:
        """See `Units`."""
        return {one.name: off for one, off in zip(self._weights, self._off, strict=True)}

    def remember(self) -> Callable[[], None]:
        """See `Units`."""
        was = self._off, self._places

        def go_back() -> None:
            self._off, self._places = was

        return go_back

    def plan(self, updates: Mapping[str, torch.Tensor]) -> PruningPlan:
        """See `Units`."""
        masks = {one.name: Mask(one.name, off.clone()) for one, off in zip(self._weights, self._off, strict=True)}
        return PruningPlan(masks, self._notes, updates=updates, frozen=self._frozen)

    def _present_scores(self) -> list[torch.Tensor]:
        return [score.detach().cpu() for score in self._scores()]

    def _set(self, off: Sequence[torch.Tensor]) -> None:
        self._off = list(off)
        self._places = [one.to(weight.tensor.device) for one, weight in zip(self._off, self._weights, strict=True)]
        self.hold()


def by_count(sparsity: float, scope: Scope) -> Choose:
    """The lowest go: round(sparsity * way * n) of the n elements of all weights, or of each weight with `Scope.LAYER`."""

    def more(scores: torch.Tensor, off: torch.Tensor, way: float) -> torch.Tensor:
        missing = max(0, round(sparsity * way * off.numel()) - int(off.sum()))
        return off | _lowest_of(scores, ~off, missing)

    def choose(scores: Sequence[torch.Tensor], off: Sequence[torch.Tensor], way: float) -> Sequence[torch.Tensor]:
        if scope is Scope.LAYER:
            return [more(score, one, way) for score, one in zip(scores, off, strict=True)]
        together = more(
            torch.cat([score.reshape(-1) for score in scores]), torch.cat([one.reshape(-1) for one in off]), way
        )
        parts = together.split([one.numel() for one in off])
        return [part.reshape(one.shape) for part, one in zip(parts, off, strict=True)]

    return choose


def by_pattern(axes: Sequence[int], pattern: NmPattern) -> Choose:
    """Of every m neighbours along its axis the lowest m - n go, fewer of them on the way: whole numbers, rounded."""

    def choose(scores: Sequence[torch.Tensor], off: Sequence[torch.Tensor], way: float) -> Sequence[torch.Tensor]:
        gone = round(way * (pattern.m - pattern.n))
        now = NmPattern(n=pattern.m - gone, m=pattern.m)
        return [
            one | least_of(score.masked_fill(one, -1.0), axis, now) if gone else one
            for score, one, axis in zip(scores, off, axes, strict=True)
        ]

    return choose


def _lowest_of(scores: torch.Tensor, eligible: torch.Tensor, count: int) -> torch.Tensor:
    """Marks the `count` eligible places with the lowest scores; of equal ones the first."""
    marked = torch.zeros(eligible.numel(), dtype=torch.bool)
    places = eligible.reshape(-1).nonzero().reshape(-1)
    marked[places[lowest(scores.reshape(-1)[places], count)]] = True
    return marked.reshape(eligible.shape)


def _highest_of(values: torch.Tensor, eligible: torch.Tensor, count: int) -> torch.Tensor:
    """Marks the `count` eligible places with the highest values, which are not negative; of equal ones the first."""
    finite = values.nan_to_num(posinf=torch.finfo(values.dtype).max)
    return _lowest_of(finite.max() - finite, eligible, count)
