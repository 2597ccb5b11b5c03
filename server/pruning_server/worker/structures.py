"""Channels of a job's model: found on a load of its own, named as the rest of the run names tensors, and removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.modules import StateGuard, find_weights, get_tensor
from pruning_server.graph.structure import Cut, Removal, Structure, analyse, shrink
from pruning_server.graph.surgery.constants import thawed_names
from pruning_server.graph.surgery.layout import prefers_channels_last
from pruning_server.graph.values import FrozenUse, Weight
from pruning_server.pruning.values import StructuralInput
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.raised import is_out_of_memory, sentence
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.expected import relative_error
from pruning_server.worker.feeding import Feed, Lengths
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.running import CallRule, all_tensors

# A second batch size shows which numbers in the code depend on the first.
BATCH_SIZES = (2, 3)
# Sums in another order.
MAX_LAYOUT_ERROR = 1e-4
CHANNELS_LAST = (
    "Kernels of convolutions are stored channels last, the layout whose CPU kernels take any width as it is; a part of "
    "the gain in latency is the layout's. Values, shapes and outputs are not affected."
)

Runs: TypeAlias = Sequence[tuple[str, Sequence[object]]]
"""Methods with their arguments."""


@dataclass(frozen=True)
class Channels:
    """What can be removed of a model.

    Attributes:
        structure: names tensors in the code of a frozen archive `constant N`.
        names: what the rest of the run calls those: their names in a thawed copy.
    """

    structure: Structure
    names: Mapping[str, str]

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups with the run's names."""
        return tuple(
            replace(
                group,
                members=tuple(replace(member, tensor=self.name(member.tensor)) for member in group.members),
            )
            for group in self.structure.groups
        )

    @property
    def frozen(self) -> tuple[FrozenUse, ...]:
        """What stays, with the run's names."""
        return tuple(
            replace(use, layers=tuple(self.name(layer) for layer in use.layers)) for use in self.structure.frozen
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of what goes."""
        count = self.structure.attention_by_dims
        text = (
            f"{count} attention layer{'s' if count > 1 else ''} can lose dimensions inside heads, the same in every head,"
            " rather than whole heads; granularity head removes whole heads."
        )
        return (text,) if count else ()

    def name(self, tensor: str) -> str:
        """The run's name of a tensor."""
        return self.names.get(tensor, tensor)

    def inputs(self, module: torch.jit.ScriptModule, weights: Sequence[Weight]) -> StructuralInput:
        """The model as a strategy sees it; `module` is the thawed one, `weights` what counts."""
        return StructuralInput(
            groups=self.groups,
            tensors=lambda name: get_tensor(module, name),
            scored=frozenset(weight.name for weight in weights),
            cost=self.structure.cost,
            frozen=self.frozen,
            scales=lambda: frozenset(one.name for one in find_weights(module).weights if one.scale),
        )


def find_channels(
    archive: ModelArchive,
    feed: Feed,
    rule: CallRule,
    methods: Mapping[str, Feed],
    sizes: Sequence[Lengths] = (),
    *,
    head_dims: bool = False,
) -> Channels:
    """Runs a load of the archive on a few of the caller's samples with labels on every axis.

    Args:
        archive: the caller's.
        feed: the samples of forward.
        rule: how the model is called.
        methods: the samples of other methods.
        sizes: other lengths at which forward runs too.
        head_dims: attention may lose dimensions inside heads where there are more of them than heads.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: the code holds something that cannot be followed.
    """
    module = archive.load().eval()
    runs = [*sample_runs(feed, rule), *sized_runs(feed, rule, sizes)]
    torch.manual_seed(rule.seed)
    try:
        samples = {"forward": runs} | {name: sample_runs(one, rule) for name, one in methods.items()}
        structure = analyse(module, samples, batch_size=rule.exact_batch or BATCH_SIZES[0], head_dims=head_dims)
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        text = (
            f"The model's channels cannot be followed through its code: {sentence(error)} "
            "Prune single weights instead (granularity weight)."
        )
        raise JobFailureError(Reason.NOTHING_PRUNABLE, text) from error
    return Channels(structure, thawed_names(module))


def sample_runs(feed: Feed, rule: CallRule) -> list[tuple[object, ...]]:
    """Arguments of forward for a few samples, at the batch sizes that the model takes."""
    sizes = (rule.exact_batch,) if rule.exact_batch else BATCH_SIZES
    return [feed.inputs([row % len(feed.samples) for row in range(size)]) for size in sizes]


def sized_runs(feed: Feed, rule: CallRule, sizes: Sequence[Lengths]) -> list[tuple[object, ...]]:
    """Arguments of forward for a few samples at other lengths."""
    count = rule.exact_batch or BATCH_SIZES[0]
    rows = [row % len(feed.samples) for row in range(count)]
    return [replace(feed, lengths=lengths).inputs(rows) for lengths in sizes]


def rename(cut: Cut, channels: Channels) -> Cut:
    """A cut with the run's names of tensors."""
    return tuple(
        replace(one, tensor=channels.name(one.tensor), aliases=tuple(channels.name(name) for name in one.aliases))
        for one in cut
    )


@dataclass(frozen=True)
class Removed:
    """The archive without its channels, what was taken from each stored tensor, and what people should know."""

    archive: ModelArchive
    cut: Cut
    notes: tuple[str, ...]


def remove_channels(
    archive: ModelArchive, channels: Channels, removal: Removal, folder: RunFolder, runs: Runs
) -> Removed:
    """Writes the archive without these channels into the run's folder; everything else in it is as it was.

    On the CPU kernels over images are stored channels last where the net takes that and its outputs keep their layout.
    """
    plain, cut = _written(archive, channels, removal, folder, channels_last=False)
    if archive.device != "cpu" or not cut or not prefers_channels_last(plain.load()):
        return Removed(plain, cut, ())
    last, _ = _written(archive, channels, removal, folder, channels_last=True)
    if not _same_outputs(plain, last, runs):
        return Removed(plain, cut, ())
    return Removed(last, cut, (CHANNELS_LAST,))


def _written(
    archive: ModelArchive, channels: Channels, removal: Removal, folder: RunFolder, *, channels_last: bool
) -> tuple[ModelArchive, Cut]:
    module = replace(archive, device="cpu").load()
    cut = shrink(module, channels.structure, removal, channels_last=channels_last)
    name = "shrunk-last.pt" if channels_last else "shrunk.pt"
    folder.write(name, module.save_to_buffer(_extra_files=archive.extra_files))
    return replace(archive, path=folder.path(name)), cut


def _same_outputs(plain: ModelArchive, last: ModelArchive, runs: Runs) -> bool:
    """Whether both run alike in both modes, and what comes out lies in memory as before."""
    one, other = plain.load(), last.load()
    for training in (False, True):
        for name, inputs in runs:
            try:
                wanted, got = (_tensors(module.train(training), name, inputs) for module in (one, other))
            except MODEL_ERRORS as error:
                if is_out_of_memory(error):
                    raise
                if training and _raises(one, name, inputs):
                    continue  # as the model did before
                return False
            if [tensor.stride() for tensor in got] != [tensor.stride() for tensor in wanted]:
                return False
            if not training and not relative_error(got, wanted) <= MAX_LAYOUT_ERROR:
                return False
    return True


def _tensors(module: torch.jit.ScriptModule, name: str, inputs: Sequence[object]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad(), StateGuard(module):
        return all_tensors(getattr(module, name)(*inputs))


def _raises(module: torch.jit.ScriptModule, name: str, inputs: Sequence[object]) -> bool:
    try:
        _tensors(module, name, inputs)
    except MODEL_ERRORS:
        return True
    return False
