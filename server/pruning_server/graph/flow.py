"""Follows stored tensors through a graph to the ops that use them, without running it.

An abstract interpretation: every value of the graph is a `Flow`, which says whose elements it holds and whether it
depends on what the caller passes in. If joins its branches, Loop and mutable lists are repeated until nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pruning_server.graph.slots import Path, Places
from pruning_server.graph.values import WeightKind

_EMPTY: frozenset[Path] = frozenset()


@dataclass(frozen=True)
class Flow:
    """What is known of one value.

    Attributes:
        stored: slots whose elements these are, moved or scaled so that 0 stays 0.
        scaled: likewise, but multiplied with something that depends on the input.
        active: depends on the method's inputs, or on state that the model writes.
        fresh: new memory; writing to it does not write to the slots.
        objects: paths of the modules or other objects that it may be.
        origin: paths of the attributes from which a container was read.
        entries: for containers, what is under each known key.
    """

    stored: frozenset[Path] = _EMPTY
    scaled: frozenset[Path] = _EMPTY
    active: bool = False
    fresh: bool = False
    objects: frozenset[Path] = _EMPTY
    origin: frozenset[Path] = _EMPTY
    entries: tuple[tuple[object, Flow], ...] | None = None

    @property
    def carried(self) -> frozenset[Path]:
        """Every slot whose elements can be recognized in the value or inside the container."""
        return (self.stored | self.scaled).union(*(inner.carried for _, inner in self.entries or ()))

    @property
    def any_active(self) -> bool:
        """Whether the value, or anything in the container, depends on the input."""
        return self.active or any(inner.any_active for _, inner in self.entries or ())

    def merged(self) -> Flow:
        """A container as one value: whatever any of its elements is."""
        return join([replace(self, entries=None), *(inner.merged() for _, inner in self.entries or ())])

    def at(self, key: object) -> Flow:
        """The element under a key; anything in the container where the key is not known."""
        found = [inner for known, inner in self.entries or () if known == key]
        element = found[0] if found and key is not None else self.merged()
        return replace(element, active=element.active or self.active)


NOTHING = Flow()


def join(flows: Sequence[Flow]) -> Flow:
    """What holds where any of several values may come."""
    if not flows:
        return NOTHING
    if all(flow == flows[0] for flow in flows):
        return flows[0]
    return Flow(
        stored=_EMPTY.union(*(flow.stored for flow in flows)),
        scaled=_EMPTY.union(*(flow.scaled for flow in flows)),
        active=any(flow.active for flow in flows),
        # Values without stored elements say nothing about memory.
        fresh=all(flow.fresh or not flow.carried for flow in flows),
        objects=_EMPTY.union(*(flow.objects for flow in flows)),
        origin=_EMPTY.union(*(flow.origin for flow in flows)),
        entries=_join_entries([flow.entries for flow in flows if flow != NOTHING]),
    )


def _join_entries(
    entries: Sequence[tuple[tuple[object, Flow], ...] | None],
) -> tuple[tuple[object, Flow], ...] | None:
    present = [one for one in entries if one is not None]
    if not present:
        return None
    keys = list(dict.fromkeys(key for one in present for key, _ in one))
    return tuple((key, join([inner for one in present for known, inner in one if known == key])) for key in keys)


@dataclass(frozen=True)
class Site:
    """One op in the model's code."""

    op: str
    source: str


@dataclass(frozen=True)
class Use:
    """An op that takes a stored tensor as its weight of some kind."""

    path: Path
    kind: WeightKind
    site: Site


@dataclass(frozen=True)
class Blocker:
    """An op after which a stored tensor cannot be followed, or 0 does not stay 0; `hard`: whatever else uses it."""

    path: Path
    reason: str
    site: Site
    hard: bool


@dataclass
class Findings:
    """What the analysis of a module has collected; filled by the interpreter and read by the survey."""

    uses: dict[tuple[Path, WeightKind], Use] = field(default_factory=dict)
    blockers: dict[Path, Blocker] = field(default_factory=dict)
    statistics: set[Path] = field(default_factory=set)
    # Vectors that an activation is multiplied by: of the vectors of normalizations the scales, not the shifts.
    scales: set[Path] = field(default_factory=set)
    written: dict[Path, Site] = field(default_factory=dict)
    rescaled: set[Path] = field(default_factory=set)
    # Per (method, number of the op's first result in that graph): the slots at its weight positions.
    weights_of_result: dict[tuple[str, int], tuple[Path, ...]] = field(default_factory=dict)

    def block(self, paths: Iterable[Path], reason: str, site: Site, *, hard: bool) -> None:
        """Notes the first reason; a hard one replaces a soft one."""
        for path in paths:
            known = self.blockers.get(path)
            if known is None or (hard and not known.hard):
                self.blockers[path] = Blocker(path, reason, site, hard)

    def use(self, paths: Iterable[Path], kind: WeightKind, site: Site) -> None:
        """Notes the first use of each kind."""
        for path in paths:
            self.uses.setdefault((path, kind), Use(path, kind, site))


def read_place(places: Places, written: Iterable[Path], path: Path) -> Flow:
    """The flow of `self.<path>`: a tensor, a container of tensors, a module, or something without tensors."""
    active = any(path[: len(one)] == one for one in (*written, *places.opaque))
    if path in places.slots:
        return Flow(active=True) if active else Flow(stored=frozenset({path}))
    if path in places.containers:
        keys = places.containers[path]
        entries = tuple((key, read_place(places, written, (*path, str(key)))) for key in keys)
        return Flow(active=active, origin=frozenset({path}), entries=entries)
    if path in places.modules or active:
        return Flow(objects=frozenset({path}), active=active)
    return NOTHING
