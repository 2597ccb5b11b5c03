"""The result of an earlier job, laid out over the original model: where a job that continues from it starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.proof.masked import CutMismatchError, mask
from pruning_server.graph.proof.stored import find_stored
from pruning_server.graph.surgery.cut import AxisCut, Removal
from pruning_server.graph.training import thaw
from pruning_server.jobs.workspace import EARLIER_MODEL_FILE, EARLIER_REPORT_FILE, EarlierFiles
from pruning_server.spec.report import FeatureHistogram
from pruning_server.worker.archives import ModelArchive, load_module
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.permitted import require_permitted


@dataclass(frozen=True)
class Earlier:
    """What an earlier job left.

    Attributes:
        job_id: its id.
        module: its pruned model, in evaluation mode.
        values: of the original's stored tensors by name, in their full shape: the pruned model's where something is left
            of them, the original's elsewhere.
        zeros: by name, [full shape], bool: nothing is left, or exactly 0.
        kept: coordinates that are left, by tensor and axis; axes that lost none are not listed.
        statistics: of its data; None where its report is from before they were kept.
    """

    job_id: str
    module: torch.jit.ScriptModule
    values: Mapping[str, torch.Tensor]
    zeros: Mapping[str, torch.Tensor]
    kept: Mapping[tuple[str, int], frozenset[int]]
    statistics: Mapping[str, FeatureHistogram] | None

    def removal(self, groups: Collection[ChannelGroup]) -> Removal:
        """The channels that it removed, by number of their group, with the run's names."""
        found = {number: tuple(self._removed(group)) for number, group in enumerate(groups)}
        return {number: channels for number, channels in found.items() if channels}

    def _removed(self, group: ChannelGroup) -> Iterator[int]:
        for channel in range(group.size):
            for member in group.members:
                names = (member.tensor, *member.aliases)
                kept = next((self.kept[name, member.axis] for name in names if (name, member.axis) in self.kept), None)
                if kept is not None and not kept.issuperset(member.coordinates[channel]):
                    yield channel
                    break


class _Layer(msgspec.Struct):
    name: str
    shape_before: tuple[int, ...]
    kept: dict[str, tuple[int, ...]]


class _Data(msgspec.Struct):
    statistics: dict[str, FeatureHistogram] = msgspec.field(default_factory=dict)


class _Report(msgspec.Struct):
    """What is read of a report; the rest of it may be of another version."""

    layers: tuple[_Layer, ...]
    data: _Data


def read_earlier(files: EarlierFiles, folder: RunFolder, archive: ModelArchive) -> Earlier:
    """Reads the files of the earlier job.

    Raises:
        JobFailureError: RESULT_REFUSED: they do not fit the model. MODEL_REFUSED: as for any model.
    """
    try:
        report = msgspec.json.decode(folder.path(EARLIER_REPORT_FILE).read_bytes(), type=_Report)
    except msgspec.MsgspecError as error:
        raise _misfit(files.job_id, f"its report cannot be read ({error})") from error
    module = load_module(folder.path(EARLIER_MODEL_FILE), archive.device, "earlier job's model").eval()
    require_permitted(module, "earlier job's model")
    cut = tuple(_cuts(report.layers))
    pruned = thaw(load_module(folder.path(EARLIER_MODEL_FILE), archive.device, "earlier job's model"))
    full, empty = thaw(archive.load()), thaw(archive.load())
    try:
        with torch.no_grad():
            for stored in find_stored(empty):
                if stored.main.is_floating_point():
                    stored.main.zero_()
        mask(full, pruned, cut)
        mask(empty, pruned, cut)
    except CutMismatchError as error:
        raise _misfit(files.job_id, str(error)) from error
    return Earlier(
        job_id=files.job_id,
        module=module,
        values=_floating(full),
        zeros={name: tensor == 0 for name, tensor in _floating(empty).items()},
        kept={(one.tensor, one.axis): frozenset(one.kept) for one in cut if len(one.kept) < one.size},
        statistics=report.data.statistics or None,
    )


def _cuts(layers: tuple[_Layer, ...]) -> Iterator[AxisCut]:
    """What the report says is left of each tensor, in the order in which it is stored now."""
    for layer in layers:
        for axis, kept in layer.kept.items():
            if not axis.isdigit() or int(axis) >= len(layer.shape_before):
                continue
            yield AxisCut(layer.name, (), int(axis), layer.shape_before[int(axis)], kept, ())


def _floating(module: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    return {
        stored.names[0]: stored.main.detach()
        for stored in find_stored(module)
        if not stored.constant and stored.main.is_floating_point()
    }


def _misfit(job_id: str, why: str) -> JobFailureError:
    text = f"The result of job {job_id} does not fit this model: {why}. Prune afresh, without continue_from."
    return JobFailureError(Reason.RESULT_REFUSED, text)
