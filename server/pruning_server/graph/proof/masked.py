"""The masked model: the original, with the shrunk model's values and zeros in every consumer of what was removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from pruning_server.graph import ir
from pruning_server.graph.proof.stored import Stored, counterparts, find_stored
from pruning_server.graph.surgery.cut import AxisCut, Cut
from pruning_server.graph.survey import find_weights
from pruning_server.graph.values import WeightKind

# He et al. 2015, arXiv:1502.01852: with this gain over the root of the fan-in, ReLU nets keep the size of a signal.
_GAIN = 2.0**0.5


class CutMismatchError(ValueError):
    """The shrunk model's tensors are not what the cut says."""


def mask(original: ir.Module, shrunk: ir.Module, cut: Cut) -> None:
    """Makes a fresh load of the original archive the masked model, in place.

    Every stored tensor and every floating-point constant of the code gets the shrunk model's values at the coordinates
    that were kept; removed ones keep the original's, or are 0 where `zeroed`. Neither module may have run yet, since
    torch computes with constants in advance.

    Raises:
        CutMismatchError: names or shapes do not fit together.
    """
    cuts = cuts_by_name(cut)
    theirs = counterparts(original, shrunk)
    seen: set[str] = set()
    with torch.no_grad():
        for stored in find_stored(original):
            mine = _cuts_of(stored, cuts)
            seen.update(stored.names)
            if _is_setting(stored):
                continue
            for name, tensor in [(stored.names[0], stored.main)] if mine else stored.tensors.items():
                _scatter(tensor, _fitting(name, tensor, theirs, mine), mine)
            for one in mine:
                _zero(stored.main, one)
    missing = sorted({one.tensor for one in cut} - seen)
    if missing:
        raise CutMismatchError(f"the original holds no tensor '{missing[0]}'")


def randomize(
    masked: ir.Module, shrunk: ir.Module, cut: Cut, seed: int, *, only: Iterable[str] | None = None, gain: float = 1.0
) -> None:
    """Gives every floating-point tensor of the masked model a random value, and the shrunk one the slices of it.

    Kernels have the size that keeps a signal's; what is positive, such as running variances, and scales of
    normalizations are between 0.5 and 1.5; everything else is around 0. Zeroed coordinates stay 0.

    Args:
        masked: what `mask` left.
        shrunk: the module that it was given.
        cut: what was removed.
        seed: the same seed gives the same values.
        only: names to which this is limited; None: everything stored, without scalars of the code.
        gain: factor of all kernels.

    Raises:
        CutMismatchError: names or shapes do not fit together.
    """
    cuts = cuts_by_name(cut)
    theirs = counterparts(masked, shrunk)
    chosen = None if only is None else frozenset(only)
    everything = find_stored(masked)
    merged = _merged(everything, theirs)
    norms = {
        name for one in find_weights(masked).weights if one.kind is WeightKind.NORM for name in (one.name, *one.aliases)
    }
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stored in everything:
            if not _can_be_random(stored) or not merged.isdisjoint(stored.names):
                continue
            if chosen is not None and chosen.isdisjoint(stored.names):
                continue
            mine = _cuts_of(stored, cuts)
            fan_in = _fan_in(_fitting(stored.names[0], stored.main, theirs, mine))
            positive = _is_positive(stored) or not norms.isdisjoint(stored.names)
            values = torch.rand(stored.main.shape, generator=generator, dtype=torch.float64)
            stored.main.copy_(_spread(values, fan_in, gain, positive=positive))
            for name, tensor in stored.tensors.items():
                _fitting(name, tensor, theirs, mine).copy_(select_kept(tensor, mine))
            for one in mine:
                _zero(stored.main, one)


def changed_tensors(original: ir.Module, shrunk: ir.Module, cut: Cut) -> tuple[str, ...]:
    """Names of the tensors whose values in the shrunk model are not, bit by bit, the original's at kept coordinates.

    Before recovery there should be none: `mask` takes any values for right, so that it is blind to coordinates that
    surgery confused.

    Raises:
        CutMismatchError: names or shapes do not fit together.
    """
    cuts = cuts_by_name(cut)
    theirs = counterparts(original, shrunk)
    return tuple(
        name
        for stored in find_stored(original)
        if not _is_setting(stored)
        for mine in (_cuts_of(stored, cuts),)
        for name, tensor in stored.tensors.items()
        if not _same_values(_fitting(name, tensor, theirs, mine), select_kept(tensor, mine))
    )


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point() or one.layout is not torch.strided:
        return torch.equal(one, other)
    return bool(torch.isclose(one, other, rtol=0.0, atol=0.0, equal_nan=True).all())


def weight_names(masked: ir.Module, cut: Cut) -> tuple[str, ...]:
    """Names of parameters, of what the code uses as a weight, and of everything that is cut: what is random at least."""
    used = [name for weight in find_weights(masked).weights for name in (weight.name, *weight.aliases)]
    parameters = [name for stored in find_stored(masked) if stored.parameter for name in stored.names]
    return tuple(dict.fromkeys((*parameters, *used, *cuts_by_name(cut))))


def select_kept(tensor: torch.Tensor, cuts: Sequence[AxisCut]) -> torch.Tensor:
    """The part of a tensor that its cuts keep."""
    for one in cuts:
        tensor = tensor.index_select(one.axis, _index(one.kept, tensor))
    return tensor


def cuts_by_name(cut: Cut) -> Mapping[str, Sequence[AxisCut]]:
    """The cuts of each tensor, under all of its names."""
    found: dict[str, list[AxisCut]] = {}
    for one in cut:
        for name in (one.tensor, *one.aliases):
            found.setdefault(name, []).append(one)
    return found


def _cuts_of(stored: Stored, cuts: Mapping[str, Sequence[AxisCut]]) -> Sequence[AxisCut]:
    mine = next((cuts[name] for name in stored.names if name in cuts), ())
    if mine and not stored.whole:
        raise CutMismatchError(f"'{stored.names[0]}' shares a part of its memory only, and cannot be cut")
    axes = [one.axis for one in mine]
    if len(set(axes)) != len(axes) or not all(0 <= axis < stored.main.dim() for axis in axes):
        raise CutMismatchError(f"the cut of '{stored.names[0]}' names the axes {axes} of {stored.main.dim()}")
    for one in mine:
        length = stored.main.shape[one.axis]
        if one.size != length or not all(0 <= place < length for place in (*one.kept, *one.zeroed)):
            raise CutMismatchError(f"axis {one.axis} of '{stored.names[0]}' has length {length}, not {one.size}")
    return mine


def _fitting(
    name: str, tensor: torch.Tensor, theirs: Mapping[str, torch.Tensor], cuts: Sequence[AxisCut]
) -> torch.Tensor:
    """The shrunk model's tensor of that name, which has the shape and type that the cut leaves."""
    if name not in theirs:
        raise CutMismatchError(f"the shrunk model holds no tensor '{name}'")
    kept = {one.axis: len(one.kept) for one in cuts}
    shape = tuple(kept.get(axis, size) for axis, size in enumerate(tensor.shape))
    found = theirs[name]
    if tuple(found.shape) != shape:
        raise CutMismatchError(f"'{name}' has shape {list(found.shape)} in the shrunk model, not {list(shape)}")
    if found.dtype != tensor.dtype:
        raise CutMismatchError(f"'{name}' is of type {found.dtype} in the shrunk model, not {tensor.dtype}")
    return found


def _scatter(full: torch.Tensor, small: torch.Tensor, cuts: Sequence[AxisCut]) -> None:
    """Writes `small` to the kept coordinates of all cut axes together."""
    if not cuts:
        full.copy_(small)
        return
    first, *rest = cuts
    index = _index(first.kept, full)
    part = full.index_select(first.axis, index)
    _scatter(part, small, rest)
    full.index_copy_(first.axis, index, part)


def _zero(tensor: torch.Tensor, cut: AxisCut) -> None:
    if cut.zeroed:
        tensor.index_fill_(cut.axis, _index(cut.zeroed, tensor), 0.0)


def _index(places: Sequence[int], tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64, device=tensor.device)


# --- Random values ----------------------------------------------------------------------------------------------------


def _can_be_random(stored: Stored) -> bool:
    tensor = stored.main
    if (
        not tensor.is_floating_point()
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or not tensor.numel()
    ):
        return False
    return not _is_setting(stored)


def _is_setting(stored: Stored) -> bool:
    """Scalars in the code are settings, such as attention's scale, and no weights."""
    return stored.constant and stored.main.dim() == 0


def _merged(stored: Sequence[Stored], theirs: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Constants of the original that are one and the same in the shrunk model, so that they cannot differ there."""
    users: dict[int, list[str]] = {}
    for one in stored:
        if one.constant and one.names[0] in theirs:
            users.setdefault(theirs[one.names[0]].data_ptr(), []).append(one.names[0])
    return frozenset(name for names in users.values() if len(names) > 1 for name in names)


def _is_positive(stored: Stored) -> bool:
    lowest, highest = stored.main.aminmax()
    return bool(lowest >= 0) and bool(highest > 0)


def _fan_in(tensor: torch.Tensor) -> int:
    """Numbers that are added up for each coordinate of the first axis that has several; 1 for scales and biases."""
    wide = [size for size in tensor.shape if size > 1]
    if len(wide) < 2:
        return 1
    return tensor.numel() // (tensor.shape[0] if tensor.shape[0] > 1 else wide[0])


def _spread(uniform: torch.Tensor, fan_in: int, gain: float, *, positive: bool) -> torch.Tensor:
    """Values from numbers in [0, 1)."""
    if positive:
        size: float = gain / fan_in**0.5 if fan_in > 1 else 1.0
        return (uniform + 0.5) * size
    if fan_in == 1:
        return uniform - 0.5
    widest: float = 3.0**0.5 * _GAIN * gain / fan_in**0.5
    return (2 * uniform - 1) * widest
