"""The original beside the pruned model: what recovery learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property

import numpy as np
import torch

from pruning_server.graph.chains import ChainRun, Visitor
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.structure import Cut
from pruning_server.graph.training import thaw
from pruning_server.pruning.values import Mask
from pruning_server.recovery.reconstruction import Pair
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.copies import TrainingCopy, make_training_copy
from pruning_server.worker.feeding import Feed
from pruning_server.worker.running import CallRule, Subject
from pruning_server.worker.student import ModuleStudent


class Original:
    """Fills `recovery.ports.Teacher`: a load of the caller's archive for recovery to run, made when it is first needed.

    Args:
        archive: the caller's.
        feed: how the archive itself is fed.
        rule: how it is called.
    """

    def __init__(self, archive: ModelArchive, feed: Feed, rule: CallRule) -> None:
        self._archive = archive
        self._feed = feed
        self._rule = rule

    @cached_property
    def copy(self) -> TrainingCopy:
        """A copy in float32 where the model allows it, in evaluation mode."""
        copy = make_training_copy(thaw(self._archive.load()), self._feed, self._rule)
        copy.module.eval()
        return copy

    @cached_property
    def _subject(self) -> Subject:
        return Subject.of(self.copy.module, self._rule)

    @cached_property
    def _chains(self) -> ChainRun:
        return ChainRun(self.copy.module)

    def outputs(self, inputs: Sequence[object]) -> torch.Tensor:
        """See `Teacher`."""
        forms = iter(self.copy.feed.forms)
        fed = tuple(one.to(next(forms).dtype) if isinstance(one, torch.Tensor) else one for one in inputs)
        device = torch.device(self._feed.device)
        generators = [device.index or 0] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=generators), torch.no_grad(), self._subject.state:
            torch.manual_seed(self._rule.seed)
            return self._subject.output(fed).detach()

    def follow(self, inputs: Sequence[object], visitor: Visitor) -> object:
        """Runs it with arguments of its own feed."""
        torch.manual_seed(self._rule.seed)
        return self._chains.run(inputs, visitor)


def make_pair(
    original: Original, student: ModuleStudent, feed: Feed, fit: np.ndarray, cut: Cut, masks: Mapping[str, Mask]
) -> Pair:
    """Original and pruned model on the samples that may be fitted on.

    Args:
        original: the teacher.
        student: the pruned model, fed by `feed`.
        feed: see there.
        fit: rows that may be fitted on.
        cut: what channels took, with the run's names of tensors.
        masks: what is pruned of single weights.
    """
    module, rule = student.subject.module, student.subject.rule

    @cache
    def chains() -> ChainRun:
        # Prepared once, and not before it is needed: models of one batch size are run hundreds of times.
        return ChainRun(module)

    def run_pruned(inputs: Sequence[object], visitor: Visitor) -> object:
        torch.manual_seed(rule.seed)
        return chains().run(inputs, visitor)

    def inputs(rows: Sequence[int]) -> tuple[Sequence[object], Sequence[object]]:
        chosen = fit[list(rows)]
        return original.copy.feed.inputs(chosen), feed.inputs(chosen)

    return Pair(
        original=original.follow,
        pruned=run_pruned,
        samples=len(fit),
        exact_batch=rule.exact_batch,
        inputs=inputs,
        tensor=lambda name: get_tensor(module, name),
        kept_outputs={(one.tensor, one.axis): one.kept for one in cut},
        removed={name: mask.removed for name, mask in masks.items()},
        changeable=frozenset((*(one.name for one in student.parameters), *student.statistic_names)),
    )
