"""Channels that are switched off while the rest is trained: zeros in every consumer's slice, as the proof masks them.

How many of each group go is what the static rule takes of the model as it was at first: scored anew under masks, the layers
that have lost most would look like those that can lose more. Which of the group's channels go is scored anew.
A channel that comes back starts with zeros in its consumers, so that the model does nothing new before it has learned to;
where two activations meet, its producers get back what they had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Cut, Removal
from pruning_server.pruning.criteria.elements import consumers
from pruning_server.pruning.dynamic.units import Gradient, Reach
from pruning_server.pruning.importance import slices_of
from pruning_server.pruning.ranking import ascending
from pruning_server.pruning.values import StructuralInput, StructuralPlan

Adjust = Callable[[Mapping[int, torch.Tensor]], Mapping[int, torch.Tensor]]
Planner = Callable[[float, Adjust], StructuralPlan]
"""The static rule: (way to the target in [0, 1], what to make of the channels' scores) -> what goes of the model as it is now."""


class ChannelUnits:
    """Fills `Units` for channels and heads.

    Args:
        structure: the model; its tensors are those that are trained.
        planner: the static rule for a share of the target.
        cut_of: what a removal takes from each stored tensor, by the names that `structure` uses.
        achieved: what the target's kind comes to after a removal.
    """

    def __init__(
        self,
        structure: StructuralInput,
        planner: Planner,
        cut_of: Callable[[Removal], Cut],
        achieved: Callable[[Removal], float],
    ) -> None:
        self._structure = structure
        self._planner = planner
        self._cut_of = cut_of
        self._achieved = achieved
        self._first_scores: Mapping[int, torch.Tensor] = {}
        self._plan, self._first_scores = self._ask(0.0)
        self._consuming = frozenset(
            (member.tensor, member.axis, coordinate)
            for group in structure.groups
            for member in group.members
            if member.consumer
            for channel in member.coordinates
            for coordinate in channel
        )
        self._places: Mapping[tuple[str, int], frozenset[int]] = {}
        self._off: dict[str, torch.Tensor] = {}
        self._kept_values: dict[str, torch.Tensor] = {}
        self._removal: Removal = {}
        self._switch(self._plan.removal)

    @property
    def reach(self) -> Reach:
        """See `Units`."""
        removed = sum(len(channels) for channels in self._removal.values())
        return Reach(removed, self._plan.removable_channels, self._achieved(self._removal))

    @property
    def removal(self) -> Removal:
        """The channels that are off."""
        return self._removal

    def advance(self, way: float) -> None:
        """See `Units`."""
        self._plan, scores = self._ask(way)
        self._switch(self._chosen(scores, self._removal))

    def reselect(self, way: float) -> None:
        """See `Units`."""
        self._plan, scores = self._ask(way)
        # What was off may have grown since, and stays as it has grown.
        self._places, self._off = {}, {}
        self._switch(self._chosen(scores, {}))

    def exchange(self, share: float, gradient: Gradient) -> int:
        """Per group, whose numbers stay: the least important of what is kept for the gates with the steepest slope."""
        _, scores = self._ask(1.0)
        came_back = 0
        removal = {number: tuple(channels) for number, channels in self._removal.items()}
        for number, off in self._removal.items():
            group = self._structure.groups[number]
            kept = sorted(set(range(group.size)) - set(off))
            count = min(int(share * len(kept)), len(off))
            gates = self._gates(group, gradient) if count and number in scores else None
            if gates is None:
                continue
            dropped = {kept[place] for place in ascending(scores[number][kept].double())[:count].tolist()}
            waiting = sorted({*off, *dropped})
            steepest = ascending((gates.max() - gates)[waiting])[:count].tolist()
            grown = {waiting[place] for place in steepest}
            came_back += len(grown & set(off))
            removal[number] = tuple(sorted({*off, *dropped} - grown))
        self._switch(removal)
        return came_back

    def resume(self, removal: Removal) -> None:
        """Goes on from what an earlier job removed; nothing may be off yet, and tensors hold what would come back."""
        self._switch({number: tuple(sorted(channels)) for number, channels in removal.items()})

    def hold(self) -> None:
        """See `Units`."""
        with torch.no_grad():
            for name, off in self._off.items():
                self._structure.tensors(name).masked_fill_(off, 0.0)

    def off(self) -> Mapping[str, torch.Tensor]:
        """See `Units`."""
        return dict(self._off)

    def remember(self) -> Callable[[], None]:
        """See `Units`."""
        was = self._removal, self._plan, self._places, self._off

        def go_back() -> None:
            self._removal, self._plan, self._places, self._off = was

        return go_back

    def plan(self, updates: Mapping[str, torch.Tensor]) -> StructuralPlan:
        """See `Units`."""
        return replace(self._plan, removal=self._removal, achieved=self._achieved(self._removal), updates=updates)

    # --- Choosing -----------------------------------------------------------------------------------------------------

    def _ask(self, way: float) -> tuple[StructuralPlan, Mapping[int, torch.Tensor]]:
        """What the static rule takes of the model as it was at first, and the scores of the channels as they are now."""
        present: dict[int, torch.Tensor] = {}

        def exchange_scores(scores: Mapping[int, torch.Tensor]) -> Mapping[int, torch.Tensor]:
            present.update(scores)
            return self._first_scores or scores

        return self._planner(way, exchange_scores), present

    def _chosen(self, scores: Mapping[int, torch.Tensor], before: Removal) -> Removal:
        """As many of each group as the plan says: what is off already, and of the others those with the lowest scores."""
        found: dict[int, tuple[int, ...]] = {}
        for number in sorted({*before, *self._plan.removal}):
            off, planned = set(before.get(number, ())), self._plan.removal.get(number, ())
            if number not in scores:  # an earlier job took from it what this one leaves alone
                found[number] = tuple(sorted(off))
                continue
            ranked = [channel for channel in ascending(scores[number].double()).tolist() if channel not in off]
            found[number] = tuple(sorted({*off, *ranked[: max(0, len(planned) - len(off))]}))
        return found

    # --- Switching ----------------------------------------------------------------------------------------------------

    def _switch(self, removal: Removal) -> None:
        """Makes this what is off, and writes the zeros."""
        zeroed = self._zeroed(removal)
        off = self._masks(zeroed)
        with torch.no_grad():
            for name in {**self._off, **off}:
                self._keep_values(name)
            for (name, axis), places in self._places.items():
                gone = places - zeroed.get((name, axis), frozenset())
                back = sorted(place for place in gone if (name, axis, place) not in self._consuming)
                if back:
                    index = _index(back).to(self._structure.tensors(name).device)
                    values = self._kept_values[name].index_select(axis, index)
                    self._structure.tensors(name).index_copy_(axis, index, values)
        self._removal, self._places, self._off = removal, zeroed, off
        self.hold()

    def _keep_values(self, name: str) -> None:
        """Remembers what the tensor holds where it is on."""
        tensor, kept, off = self._structure.tensors(name), self._kept_values.get(name), self._off.get(name)
        if kept is None or off is None:
            self._kept_values[name] = tensor.detach().clone()
        else:
            kept.copy_(torch.where(off, kept, tensor))

    def _zeroed(self, removal: Removal) -> dict[tuple[str, int], frozenset[int]]:
        """Where zeros stand, by tensor and axis; what stands only in the code is left alone."""
        found = {}
        for one in self._cut_of(removal) if removal else ():
            if one.zeroed and self._has(one.tensor):
                found[one.tensor, one.axis] = frozenset(one.zeroed)
        return found

    def _has(self, name: str) -> bool:
        try:
            self._structure.tensors(name)
        except KeyError:
            return False
        return True

    def _masks(self, zeroed: Mapping[tuple[str, int], frozenset[int]]) -> dict[str, torch.Tensor]:
        masks: dict[str, torch.Tensor] = {}
        for (name, axis), places in zeroed.items():
            tensor = self._structure.tensors(name)
            if name not in masks:
                masks[name] = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
            masks[name].index_fill_(axis, _index(sorted(places)).to(tensor.device), value=True)
        return masks

    def _gates(self, group: ChannelGroup, gradient: Gradient) -> torch.Tensor | None:
        """|dL/dgate| of every channel: the sum over its consumers of gradient times weight as it was when it was on.

        None where no gradient says anything.
        """
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in consumers(group.members):
            grad = gradient(member.tensor)
            if grad is None:
                continue
            value = self._kept_values.get(member.tensor)
            if value is None:
                value = self._structure.tensors(member.tensor)
            products = slices_of(member, value).double() * slices_of(member, grad).double()
            total += products.sum(dim=1).cpu()
        gates = total.abs().nan_to_num(nan=0.0, posinf=torch.finfo(torch.float64).max)
        return gates if bool((gates > 0).any()) else None


def _index(channels: Iterable[int]) -> torch.Tensor:
    return torch.tensor(tuple(channels), dtype=torch.int64)
