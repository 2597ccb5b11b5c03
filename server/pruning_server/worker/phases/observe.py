"""OBSERVE: how the model is called, what of it can be pruned, what it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.cost import ParameterCount, count_parameters
from pruning_server.evaluation.splits import Splits, split_dataset
from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.graph.observe import Macs, count_macs
from pruning_server.graph.values import Weight, WeightSurvey
from pruning_server.pruning.selection import Selection, select
from pruning_server.recovery.objective import Objective
from pruning_server.spec.request import Granularity, PruningSpec, StaticStrategy
from pruning_server.worker.aims import DEFAULT_BATCH_SIZE, find_aims
from pruning_server.worker.calling import Call, find_call, warn_of_batches
from pruning_server.worker.feeding import Feed, Lengths
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.judging import Judging, require_numbers
from pruning_server.worker.methods import find_method_feeds
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.running import CallRule, Subject
from pruning_server.worker.sizes import Sizes, find_sizes
from pruning_server.worker.state import find_state
from pruning_server.worker.story import Story
from pruning_server.worker.structures import BATCH_SIZES, Channels, find_channels

STRUCTURAL = frozenset({Granularity.CHANNEL, Granularity.HEAD})
# Few, as a slow model has a minute for this phase.
OBSERVED_ROWS = 32


@dataclass(frozen=True)
class Observed:
    """What was found out without changing anything.

    Attributes:
        survey: everything that the graph uses as a weight.
        selection: the weights that may be pruned, and what may not.
        feed: how the validation set is fed; `train_feed` likewise.
        rule: how the model is called.
        state_names: buffers that a run in evaluation mode changes: the model's own state.
        objective: task and loss.
        judging: how every model of this run is judged; `train_judging` on the training set.
        method_feeds: how exported methods other than forward are fed, where the caller sent samples.
        channels: what can be removed as a whole; None for jobs that prune single weights.
        splits: rows of the validation set for fit, select and report.
        sizes: other lengths of the axes that the request leaves open, at which forward runs.
        macs: multiply-accumulates of one sample.
        parameters: of the original, counted before anything is pruned.
        notes: what people should know.
    """

    survey: WeightSurvey
    selection: Selection
    feed: Feed
    rule: CallRule
    state_names: frozenset[str]
    batch_sizes: tuple[int, ...]
    objective: Objective
    judging: Judging
    train_judging: Judging | None
    method_feeds: Mapping[str, Feed]
    channels: Channels | None
    splits: Splits
    macs: Macs
    parameters: ParameterCount
    notes: tuple[str, ...]
    sizes: tuple[Lengths, ...] = ()


def observe(spec: PruningSpec, loaded: Loaded, folder: RunFolder, story: Story) -> Observed:
    """Tries the model on the caller's samples.

    Raises:
        JobFailureError: nothing can be pruned (NOTHING_PRUNABLE), the model does not take these inputs
            (MODEL_INPUT_MISMATCH), or targets, task and loss do not fit together.
    """
    survey = find_weights(loaded.subject)
    selection = _select_weights(spec, loaded, survey)
    call = find_call(loaded.original, loaded.validation, spec, loaded.archive.device)
    state_names = find_state(loaded.original, call.feed, call.rule)
    rule = replace(call.rule, stateful=bool(state_names))
    subject = Subject.of(loaded.original, rule)
    story.progress(0.5)
    output = _observed_output(subject, call.feed)
    sizes = find_sizes(loaded.original, call.feed, rule, spec.dynamic_axes, rows=min(BATCH_SIZES))
    aims = find_aims(spec, loaded, subject, call.feed, output, folder.scratch)
    method_feeds = find_method_feeds(loaded.original, loaded.methods, spec.preprocessing, loaded.archive.device)
    splits = split_dataset(
        loaded.validation.inputs,
        loaded.validation.targets,
        groups=loaded.validation.groups,
        marks=loaded.validation.split,
        fractions=spec.split,
        seed=spec.seed,
        task=aims.judging.objective.task,
    )
    channels = _find_channels(spec, loaded, call, method_feeds, sizes)
    warned = (*splits.warnings, *warn_of_batches(rule.exact_batch, splits.sizes()))
    return Observed(
        survey=survey,
        selection=selection,
        feed=call.feed,
        rule=rule,
        state_names=state_names,
        batch_sizes=call.batch_sizes,
        objective=aims.judging.objective,
        judging=aims.judging,
        train_judging=aims.train,
        method_feeds=method_feeds,
        channels=channels,
        splits=replace(splits, warnings=warned),
        macs=macs_of_forward(loaded.original, call.feed, rule),
        parameters=count_parameters(loaded.subject),
        notes=(*call.notes, *aims.notes, *selection.notes, *sizes.notes, *(channels.notes if channels else ())),
        sizes=sizes.found,
    )


def _select_weights(spec: PruningSpec, loaded: Loaded, survey: WeightSurvey) -> Selection:
    strategy = spec.strategy
    selection = select(
        survey,
        include_biases=isinstance(strategy, StaticStrategy) and strategy.include_biases,
        include_norms=isinstance(strategy, StaticStrategy) and strategy.include_norms,
        # A group of channels is excluded with its members, which the plan does.
        exclude_layers=() if strategy.granularity in STRUCTURAL else spec.exclude_layers,
    )
    for weight in selection.weights:
        _require_finite(loaded.subject, weight)
    return selection


def _find_channels(
    spec: PruningSpec, loaded: Loaded, call: Call, methods: Mapping[str, Feed], sizes: Sizes
) -> Channels | None:
    if spec.strategy.granularity in STRUCTURAL:
        head_dims = spec.strategy.granularity is Granularity.CHANNEL
        return find_channels(loaded.archive, call.feed, call.rule, methods, sizes.found, head_dims=head_dims)
    return None


def _require_finite(module: torch.jit.ScriptModule, weight: Weight) -> None:
    count = int((~torch.isfinite(get_tensor(module, weight.name))).sum())
    if count:
        text = f"{weight.name} has {count} of {weight.numel} values that are NaN or infinite; send finite weights."
        raise JobFailureError(Reason.MODEL_NOT_FINITE, text, metadata={"tensor": weight.name})


def _observed_output(subject: Subject, feed: Feed) -> torch.Tensor:
    rows = np.arange(min(OBSERVED_ROWS, len(feed.samples))).tolist()
    output = torch.cat([output for _, output in subject.outputs(feed, rows, DEFAULT_BATCH_SIZE)])
    require_numbers(output.float().cpu().numpy(), rows, feed.name)
    return output


def macs_of_forward(module: torch.jit.ScriptModule, feed: Feed, rule: CallRule) -> Macs:
    """Multiply-accumulates of one sample."""
    size = rule.exact_batch or 1
    rows = [row % len(feed.samples) for row in range(size)]
    return count_macs(module, feed.inputs(rows), size)
