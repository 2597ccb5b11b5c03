"""Fills `pruning.evidence.Evidence`: runs of a load of the archive of its own, on the caller's fit and select samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.capture import Capture, LinearCall
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.structure import Cut, Removal
from pruning_server.graph.training import thaw
from pruning_server.pruning.evidence import Part, SampleScores
from pruning_server.pruning.values import Mask
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.model_errors import TRAINING_ERRORS
from pruning_server.recovery.normalization import reestimate
from pruning_server.recovery.objective import TargetForm
from pruning_server.recovery.raised import last_line
from pruning_server.worker.copies import TrainingCopy, make_training_copy
from pruning_server.worker.feeding import Feed
from pruning_server.worker.fitting import FitRows
from pruning_server.worker.judging import Judging, Reference
from pruning_server.worker.latency import LatencyMeter
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.running import Subject
from pruning_server.worker.structures import rename
from pruning_server.worker.student import ModuleStudent, find_statistics, find_trainables

Index: TypeAlias = torch.Tensor | tuple[slice | list[int], ...]

CAPTURED_BATCH = 32
RENORMALIZED_BATCH = 64


class ModelEvidence:
    """One scratch load of the caller's archive, made when first needed; every method leaves it as it was.

    Args:
        loaded: the caller's files.
        observed: how the model is called, judged and split.
        reference: the original's outputs.
        meter: measures a removal's latency ratio.
        seed: of the order of samples and of whatever is drawn.
    """

    def __init__(
        self, loaded: Loaded, observed: Observed, reference: Reference, meter: LatencyMeter, *, seed: int
    ) -> None:
        self._loaded = loaded
        self._observed = observed
        self._reference = reference
        self._meter = meter
        self._seed = seed
        self._originals: dict[Part, SampleScores] = {}

    @property
    def samples(self) -> int:
        """Samples of the fit split."""
        return len(self._observed.splits.fit)

    # --- Gradients and activations ------------------------------------------------------------------------------------

    def gradients(
        self, names: Collection[str], *, samples: int, batch_size: int = 1
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """See `Evidence`."""
        student, data = self._student, self._data
        exact = student.exact_batch
        size = exact or max(1, batch_size)
        order = self._order()[: max(size, samples)]
        generator = torch.Generator().manual_seed(self._seed)
        student.eval()
        for start in range(0, len(order) - size + 1, size):
            yield self._gradient(student, data, order[start : start + size], frozenset(names), generator)

    def _gradient(
        self,
        student: ModuleStudent,
        data: FitRows,
        rows: Sequence[int],
        names: frozenset[str],
        generator: torch.Generator,
    ) -> Mapping[str, torch.Tensor]:
        batch = data.batch(rows)
        tensors = {name: self._tensor(name) for name in sorted(names)}
        wanted = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        was = {name: tensor.requires_grad for name, tensor in wanted.items()}
        try:
            for tensor in wanted.values():
                tensor.requires_grad_()
            with student.keeping_state():
                output = student.forward(batch.inputs)
                if self._observed.objective.form is TargetForm.NONE or batch.target is None:
                    # The loss is flat where the original's own output is the target.
                    draw = torch.randn(output.shape, generator=generator).to(output)
                    loss = (output * draw).sum() / len(rows)
                else:
                    loss = self._judging.loss.mean(output, batch.target)
                found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        except TRAINING_ERRORS as error:
            text = (
                f"The criterion needs gradients, and the model gives none: {last_line(error)} Choose a criterion without "
                "them, such as l1."
            )
            raise JobFailureError(Reason.NOTHING_PRUNABLE, text) from error
        finally:
            for name, tensor in wanted.items():
                if tensor.is_leaf:
                    tensor.requires_grad_(was[name])
        return {
            name: torch.zeros_like(tensor) if grad is None else grad.detach()
            for (name, tensor), grad in zip(wanted.items(), found, strict=True)
        }

    def calls(self, visit: Callable[[LinearCall], None], *, samples: int, names: Collection[str] | None = None) -> None:
        """See `Evidence`."""
        size = self._observed.rule.exact_batch or CAPTURED_BATCH
        order = self._order()[:samples]
        self._module.eval()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if self._observed.rule.exact_batch:
                rows = [*rows, *[rows[-1]] * (size - len(rows))]
            self._capture.run(self._feed.inputs(self._observed.splits.fit[rows]), visit, names)

    # --- Trials -------------------------------------------------------------------------------------------------------

    def original(self, part: Part) -> SampleScores:
        """See `Evidence`."""
        if part not in self._originals:
            self._originals[part] = self._score(part)
        return self._originals[part]

    def trial(
        self, removed: Removal | Mapping[str, Mask], *, part: Part = "select", renormalize: bool = False
    ) -> SampleScores:
        """See `Evidence`."""
        with self._without(removed):
            if not renormalize or not self._student.statistic_names:
                return self._score(part)
            before = Checkpoint.of(lambda: self._student.statistics)
            try:
                reestimate(self._student, self._data, RENORMALIZED_BATCH, self._seed)
                return self._score(part)
            finally:
                before.restore()

    def divergence(
        self,
        removed: Removal | Mapping[str, Mask],
        *,
        part: Part = "select",
        updates: Mapping[str, torch.Tensor] | None = None,
        samples: int | None = None,
    ) -> float:
        """See `Evidence`."""
        rows = getattr(self._observed.splits, part)[:samples]
        self._student.eval()
        with self._without(removed, updates):
            try:
                outputs = self._judging.outputs(self._student.subject, rows)
            except JobFailureError as error:
                if error.reason is not Reason.MODEL_NOT_FINITE:
                    raise
                return float("nan")
        return self._judging.divergence(outputs, self._reference.values[rows])

    def latency_ratio(self, removal: Removal, *, careful: bool = False) -> float:
        """See `Evidence`."""
        return self._meter(removal, careful=careful)

    def _score(self, part: Part) -> SampleScores:
        rows = getattr(self._observed.splits, part)
        units = self._observed.splits.units[rows]
        self._student.eval()
        try:
            outputs = self._judging.outputs(self._student.subject, rows)
        except JobFailureError as error:
            if error.reason is not Reason.MODEL_NOT_FINITE:
                raise
            nothing = np.full(len(rows), np.nan)
            return SampleScores(nothing, nothing, units)
        values = self._judging.values(outputs, self._reference.values[rows])
        return SampleScores(values.metric, values.loss, units)

    @contextmanager
    def _without(
        self, removed: Removal | Mapping[str, Mask], updates: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[None]:
        places = [(self._tensor(name), index) for name, index in _zeros(removed, self._cut_of)]
        written = [(self._tensor(name), value) for name, value in (updates or {}).items()]
        touched = {id(tensor): tensor for tensor, _ in (*places, *written)}
        kept = [(tensor, tensor.detach().clone()) for tensor in touched.values()]
        try:
            with torch.no_grad():
                for tensor, value in written:
                    tensor.copy_(value)
                for tensor, index in places:
                    tensor[index] = 0
            yield
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)

    def _cut_of(self, removal: Removal) -> Cut:
        channels = self._observed.channels
        if channels is None:
            raise JobFailureError(Reason.INTERNAL, "Channels were tried that were never observed; please report this.")
        return rename(channels.structure.cut(removal), channels)

    # --- The scratch load ---------------------------------------------------------------------------------------------

    @cached_property
    def _copy(self) -> TrainingCopy:
        module = thaw(self._loaded.archive.load())
        return make_training_copy(module, self._observed.feed, self._observed.rule)

    @property
    def _module(self) -> torch.jit.ScriptModule:
        return self._copy.module

    @property
    def _feed(self) -> Feed:
        return self._copy.feed

    @cached_property
    def _judging(self) -> Judging:
        return replace(self._observed.judging, feed=self._copy.feed)

    @cached_property
    def _student(self) -> ModuleStudent:
        trainables, _ = find_trainables(
            self._module, self._observed.survey.weights, frozen_archive=self._loaded.frozen_archive
        )
        subject = Subject.of(self._module, self._observed.rule, keep_statistics=True)
        return ModuleStudent(subject, trainables, find_statistics(self._module, self._observed.state_names))

    @cached_property
    def _data(self) -> FitRows:
        return FitRows(self._judging, self._reference, self._observed.splits.fit)

    @cached_property
    def _capture(self) -> Capture:
        return Capture(self._module)

    def _tensor(self, name: str) -> torch.Tensor:
        return get_tensor(self._module, name)

    def _order(self) -> list[int]:
        return [int(row) for row in np.random.default_rng(self._seed).permutation(self.samples)]


def _zeros(removed: Removal | Mapping[str, Mask], cut_of: Callable[[Removal], Cut]) -> Iterator[tuple[str, Index]]:
    """Where zeros are written: names of tensors with an index each."""
    masks = {name: mask for name, mask in removed.items() if isinstance(mask, Mask)}
    if masks:
        for name, mask in masks.items():
            yield str(name), mask.removed
        return
    removal: Removal = {int(number): channels for number, channels in removed.items() if not isinstance(channels, Mask)}
    for one in cut_of(removal) if removal else ():
        if one.zeroed:
            yield one.tensor, (*(slice(None),) * one.axis, list(one.zeroed))
