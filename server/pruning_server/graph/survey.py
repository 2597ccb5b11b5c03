"""From findings to the list of prunable weights: one per memory, with its kind; and why the others are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pruning_server.graph import ir
from pruning_server.graph.flow import Blocker, Findings, Site
from pruning_server.graph.interpreter import analyse
from pruning_server.graph.slots import MemoryGroup, Path, Places, Slot, find_places, group_by_memory
from pruning_server.graph.values import KERNEL_KINDS, FrozenUse, Weight, WeightKind, WeightSurvey


def find_weights(module: ir.Module) -> WeightSurvey:
    """Finds the stored tensors that the graphs of all methods use as weights; tensors on the same memory come once.

    Every block of every If and Loop counts, whether a run reaches it or not. The module is neither run nor changed.
    """
    places = find_places(module)
    graphs = {method: ir.inlined_copy(module, method) for method in ir.method_names(module)}
    return survey(places, analyse(places, graphs))


def survey(places: Places, findings: Findings) -> WeightSurvey:
    """Decides for every memory whether it is a weight, from what an analysis has found."""
    weights: list[Weight] = []
    frozen: dict[tuple[Site, str], list[str]] = {}
    for group in group_by_memory(model_order(places)):
        kind = _kind(group, findings)
        obstacle = _obstacle(group, kind, findings)
        if kind is not None and obstacle is None:
            weights.append(_weight(group, kind, findings))
        elif obstacle is not None and (kind is not None or any(slot.parameter for slot in group.slots)):
            frozen.setdefault(obstacle, []).append(group.main.name)
    uses = tuple(
        FrozenUse(op=site.op, source=site.source, reason=reason, layers=tuple(names))
        for (site, reason), names in frozen.items()
    )
    return WeightSurvey(tuple(weights), (*uses, *_unreadable(places)))


def model_order(places: Places) -> list[Slot]:
    """Parameters in the order of the modules, then everything else: the first name of a memory is a parameter's."""
    slots = list(places.slots.values())
    return sorted(slots, key=lambda slot: not slot.parameter)


def _kind(group: MemoryGroup, findings: Findings) -> WeightKind | None:
    """The first kernel role that any name of the memory plays, else the first other role."""
    found = {kind: None for slot in group.slots for kind in _kinds_of(slot.path, findings.uses)}
    kernels = [kind for kind in found if kind in KERNEL_KINDS]
    return next(iter(kernels or found), None)


def _kinds_of(path: Path, uses: Mapping[tuple[Path, WeightKind], object]) -> list[WeightKind]:
    return [kind for used, kind in uses if used == path]


def _obstacle(group: MemoryGroup, kind: WeightKind | None, findings: Findings) -> tuple[Site, str] | None:
    paths = [slot.path for slot in group.slots]
    for path in paths:
        for written, site in findings.written.items():
            if path[: len(written)] == written:
                return site, "the model writes to it while it runs"
    blockers = [findings.blockers[path] for path in paths if path in findings.blockers]
    hard = [blocker for blocker in blockers if blocker.hard]
    if hard:
        return hard[0].site, hard[0].reason
    if group.flaw is not None:
        return _first_site(paths, findings, blockers), group.flaw
    if kind is None:
        return _why_no_weight(blockers)
    return None


def _first_site(paths: Sequence[Path], findings: Findings, blockers: Sequence[Blocker]) -> Site:
    uses = [use.site for use in findings.uses.values() if use.path in paths]
    return next(iter([*uses, *(blocker.site for blocker in blockers)]), Site("", ""))


def _why_no_weight(blockers: Sequence[Blocker]) -> tuple[Site, str]:
    if blockers:
        return blockers[0].site, blockers[0].reason
    return Site("", ""), "no method of the model uses it as a weight"


def _weight(group: MemoryGroup, kind: WeightKind, findings: Findings) -> Weight:
    main = group.main
    return Weight(
        name=main.name,
        aliases=tuple(slot.name for slot in group.others),
        kind=kind,
        layer=main.layer,
        shape=tuple(main.tensor.shape),
        dtype=main.tensor.dtype,
        numel=main.tensor.numel(),
        parameter=main.parameter,
        scale=kind is WeightKind.NORM and any(slot.path in findings.scales for slot in group.slots),
    )


def _unreadable(places: Places) -> tuple[FrozenUse, ...]:
    if not places.opaque:
        return ()
    names = tuple(".".join(path) for path in places.opaque)
    reason = "tensors inside instances of TorchScript classes cannot be reached; hold them in modules instead"
    return (FrozenUse(op="prim::GetAttr", source="", reason=reason, layers=names),)
