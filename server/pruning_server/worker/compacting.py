"""What will be delivered: the trained values in the archive's own clothes, less the channels that pruning left empty."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pruning_server.graph.dead_channels import DeadChannels, find_dead_channels, remove_dead_channels
from pruning_server.graph.structure import Cut
from pruning_server.graph.surgery.constants import thawed_names
from pruning_server.graph.surgery.cut import AxisCut
from pruning_server.pruning.values import Mask
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, sentence
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.carrying import carry_over
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.structures import sample_runs, sized_runs

# Relative to the run's folder.
FILLED_FILE = "filled.pt"


@dataclass(frozen=True)
class Compacted:
    """The model before it is packed.

    Attributes:
        module: on the CPU, with everything but values, and channels that went, as in the caller's archive.
        cut: what channels took from each stored tensor, whichever way they went.
        masks: the masks, of the shapes that are left.
        names: the run's names of tensors in the code of a frozen archive.
        whole: the same model with its empty channels, where any went.
        empty_channels: how many of those went.
        notes: what people should know.
    """

    module: torch.jit.ScriptModule
    cut: Cut
    masks: Mapping[str, Mask]
    names: Mapping[str, str]
    whole: torch.jit.ScriptModule | None
    empty_channels: int
    notes: tuple[str, ...]

    @property
    def is_smaller(self) -> bool:
        """Whether channels went; a cut can also be another order of all of them."""
        return any(len(one.kept) < one.size for one in self.cut)


def compact(loaded: Loaded, observed: Observed, pruned: Pruned, trained: Trained, folder: RunFolder) -> Compacted:
    """Carries the trained values over; where single weights were pruned, empty channels go."""
    portable = replace(pruned.archive, device="cpu")
    module = carry_over(portable, trained.module, trained.carried, frozen_archive=loaded.frozen_archive)
    names = observed.channels.names if observed.channels is not None else {}
    plain = Compacted(module, pruned.cut, pruned.masks, names, None, 0, ())
    if not any(_has_empty_slice(mask) for mask in pruned.masks.values()):
        return plain
    folder.write(FILLED_FILE, module.save_to_buffer())
    filled = replace(pruned.archive, path=folder.path(FILLED_FILE))
    try:
        feeds = {"forward": observed.feed, **observed.method_feeds}
        samples = {name: sample_runs(feed, observed.rule) for name, feed in feeds.items()}
        samples["forward"] += sized_runs(observed.feed, observed.rule, observed.sizes)
        dead = find_dead_channels(filled.load().eval(), samples)
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        note = f"Channels without any weight left were not looked for: {sentence(error)}"
        return replace(plain, notes=(note,))
    return _without(dead, plain, replace(filled, device="cpu")) if dead.removal else plain


def _without(dead: DeadChannels, plain: Compacted, filled: ModelArchive) -> Compacted:
    module, whole = filled.load(), filled.load()
    names = thawed_names(whole)
    cut = remove_dead_channels(module, dead)
    # Only a fresh load runs the edited code.
    module = torch.jit.load(io.BytesIO(module.save_to_buffer()))
    removed = sum(len(channels) for channels in dead.removal.values())
    note = f"{removed} channel{'s' if removed > 1 else ''} had no weight left and went as a whole" + (
        "; the next layers' biases took their constants over." if dead.folds else "."
    )
    return Compacted(module, cut, sliced_masks(plain.masks, cut, names), names, whole, removed, (note,))


def sliced_masks(masks: Mapping[str, Mask], cut: Cut, names: Mapping[str, str]) -> dict[str, Mask]:
    """The masks of what a cut keeps, in its order; `names` are the run's names of tensors in the code."""
    return {name: _sliced(mask, [one for one in cut if name in _names_of(one, names)]) for name, mask in masks.items()}


def _has_empty_slice(mask: Mask) -> bool:
    removed = mask.removed
    return removed.dim() > 1 and any(
        bool(removed.movedim(axis, 0).flatten(1).all(dim=1).any()) for axis in range(removed.dim())
    )


def _names_of(one: AxisCut, names: Mapping[str, str]) -> Sequence[str]:
    return [names.get(one.tensor, one.tensor), *one.aliases]


def _sliced(mask: Mask, cuts: Sequence[AxisCut]) -> Mask:
    removed = mask.removed
    for one in cuts:
        removed = removed.index_select(one.axis, torch.tensor(one.kept, device=removed.device))
    return replace(mask, removed=removed)
