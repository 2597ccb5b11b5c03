"""RECOVER: winning accuracy back on a copy of the pruned model, with the pruned weights held at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.graph.dropout import DropoutRates, scale_dropout, set_dropout
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.proof.stored import HALF, stored_dtypes
from pruning_server.graph.structure import Cut
from pruning_server.pruning.masks import MaskHolder
from pruning_server.pruning.values import Mask, PruningPlan
from pruning_server.recovery.ladder import Recovered, recover
from pruning_server.recovery.lesson import Lesson
from pruning_server.recovery.ports import Score
from pruning_server.recovery.schedule import plan_training
from pruning_server.spec.request import ConditionalStrategy, PruningSpec
from pruning_server.worker.copies import make_training_copy
from pruning_server.worker.feeding import Feed
from pruning_server.worker.fitting import FitRows
from pruning_server.worker.judging import Reference
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story
from pruning_server.worker.structures import rename
from pruning_server.worker.student import ModuleStudent, find_statistics, find_trainables
from pruning_server.worker.teaching import Original, make_pair


@dataclass(frozen=True)
class Trained:
    """What recovery left.

    Attributes:
        module: holds the values to deliver; its graph and flags may have been rewritten for training.
        feed: how `module` is fed.
        carried: names of the tensors whose values may have changed.
        recovered: how it went; None where recovery was switched off.
        batch_size: samples per step.
        notes: what people should know.
        dropout: the rates that were set or lowered; None where nothing was trained.
    """

    module: torch.jit.ScriptModule
    feed: Feed
    carried: tuple[str, ...]
    recovered: Recovered | None
    batch_size: int
    notes: tuple[str, ...]
    dropout: DropoutRates | None = None


def recover_accuracy(
    spec: PruningSpec, loaded: Loaded, observed: Observed, reference: Reference, pruned: Pruned, story: Story
) -> Trained:
    """Recovers on *fit*, chooses on *select*, never looks at *report*."""
    weight_names = tuple(dict.fromkeys((*pruned.masks, *pruned.updated)))
    if spec.recovery.disabled:
        return Trained(pruned.subject, observed.feed, weight_names, None, 0, ("Recovery was switched off.",))
    if isinstance(spec.strategy, ConditionalStrategy) and _is_untouched(pruned):
        return Trained(pruned.subject, observed.feed, weight_names, None, 0, ("Nothing was removed or recovered.",))
    copy = make_training_copy(pruned.subject, observed.feed, observed.rule)
    cut = rename(pruned.cut, observed.channels) if observed.channels else ()
    rates, about_rates = dropout_for_training(spec, copy.module, _shares_left(cut, pruned.masks))
    module = rates.module
    judging = replace(observed.judging, feed=copy.feed)
    trainables, notes = find_trainables(module, observed.survey.weights, frozen_archive=loaded.frozen_archive)
    state = observed.state_names
    student = ModuleStudent(
        Subject.of(module, observed.rule, keep_statistics=True), trainables, find_statistics(module, state)
    )
    holder = MaskHolder({name: get_tensor(module, name) for name in pruned.masks}, pruned.masks)
    splits = observed.splits
    plan = plan_training(
        spec.fine_tune,
        samples=len(splits.fit),
        macs=observed.macs.total,
        device_type=torch.device(observed.feed.device).type,
        seed=spec.seed,
    )
    plan = replace(plan, epochs=max(0, plan.epochs - pruned.spent_epochs))

    def judge() -> Score:
        return judging.score(student.subject, splits.select, reference)

    def progress(*, epoch: int, epochs: int, fraction: float, metrics: dict[str, float], samples: int) -> None:
        story.progress(fraction, epoch=epoch, epochs=epochs, metrics=metrics)
        story.count(samples_trained=samples)

    original = Original(loaded.archive, observed.feed, observed.rule)
    single = observed.rule.exact_batch == 1 and bool(student.statistic_names)
    lesson = Lesson(
        student=student,
        data=FitRows(judging, reference, splits.fit),
        judge=judge,
        masks=holder,
        objective=observed.objective,
        loss=judging.loss,
        plan=plan,
        progress=progress,
        # Statistics of a single sample are not those of the data.
        training_mode=not single,
        pair=make_pair(original, student, copy.feed, splits.fit, cut, pruned.masks),
        teacher=original,
        all_data=FitRows(judging, reference, np.concatenate([splits.fit, splits.select])),
        autocast=mixed_precision(module, observed.feed.device),
        seconds=story.clock.monotonic,
    )
    recovered = recover(lesson)
    if recovered.history or spec.fine_tune.dropout is not None:
        notes = (*notes, *about_rates)
    carried = dict.fromkeys((*weight_names, *(t.name for t in trainables), *student.statistic_names))
    return Trained(
        module, copy.feed, tuple(carried), recovered, plan.batch_size, (*copy.notes, *notes, *recovered.notes), rates
    )


def dropout_for_training(
    spec: PruningSpec, module: torch.jit.ScriptModule, left: Mapping[str, float]
) -> tuple[DropoutRates, tuple[str, ...]]:
    """The module with the rates that the request names, else its own, lowered by what is `left`; and what to tell."""
    rate = spec.fine_tune.dropout
    if rate is None:
        scaled, lowered = scale_dropout(module, left)
        note = f"While training, {lowered} dropout rates were lowered as far as was pruned behind them."
        return DropoutRates(scaled, lowered, 0), (note,) if lowered else ()
    found = set_dropout(module, rate)
    told = f"While training, {found.layers} dropout rates were {rate:g}, as asked for."
    notes = [
        told if found.layers else "The model has no dropout whose rate could be set: fine_tune.dropout changes nothing."
    ]
    if found.unset:
        notes.append(f"{found.unset} dropouts compute their own rate, which was left as it is.")
    return found, tuple(notes)


def _is_untouched(pruned: Pruned) -> bool:
    plan = pruned.plan
    removed = plan.removed_weights if isinstance(plan, PruningPlan) else plan.removed_channels
    return not removed and not pruned.updated


def _shares_left(cut: Cut, masks: Mapping[str, Mask]) -> dict[str, float]:
    """By stored tensor, the share of its values that is left."""
    shares: dict[str, float] = {name: 1 - float(mask.removed.float().mean()) for name, mask in masks.items()}
    for one in cut:
        shares[one.tensor] = shares.get(one.tensor, 1.0) * len(one.kept) / one.size
    return shares


def mixed_precision(module: torch.jit.ScriptModule, device: str) -> torch.dtype | None:
    """What a GPU computes in while a model of single precision is trained: half precision where it may.

    The weights of a frozen archive are no parameters, so that all that is stored counts.
    """
    stored = stored_dtypes(module)
    single = bool(stored) and stored[0] is torch.float32 and not any(dtype in HALF for dtype in stored)
    if torch.device(device).type != "cuda" or not single:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
