"""The inference gate of a job: which channels make the core, where the gate closes, and whether that is faster."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.errors import JobFailureError
from pruning_server.evaluation.gate import GatePoint, find_gate_point, samples_needed
from pruning_server.graph.gating.core import find_core
from pruning_server.graph.gating.insertion import NotGateableError, insert_gate
from pruning_server.graph.gating.ordering import after, find_permutations, reorder
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.proof.stored import enumerate_constants
from pruning_server.graph.structure import Cut, Removal
from pruning_server.graph.training import thaw
from pruning_server.pruning.core_order import order_by_gain
from pruning_server.spec.report_strategy import GateSection
from pruning_server.spec.request import DynamicStrategy, PruningSpec, Task
from pruning_server.worker.archives import ModelArchive, load_module
from pruning_server.worker.compacting import Compacted, sliced_masks
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.gate import FINAL_SECONDS, TIMED_SAMPLES, Gate, time_alone
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story
from pruning_server.worker.structures import find_channels

# Of the channels of every layer that can be split.
CORE_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)
# Below this, what is saved is within what one machine differs from another.
MIN_GAIN = 0.05
MAX_SAMPLES = 4096
TRIAL_SECONDS = 1.0
# Relative to the run's folder.
UNGATED_FILE, GATED_FILE = "ungated.pt", "gated.pt"


class _RefusedError(Exception):
    """There will be no gate; the message says why, for the report."""


@dataclass(frozen=True)
class _Trial:
    """A core on the samples that gates are chosen on."""

    share: float
    removal: Removal
    point: GatePoint
    seconds: float


def add_gate(
    loaded: Loaded, observed: Observed, compacted: Compacted, budget: float, folder: RunFolder, story: Story
) -> tuple[Compacted, Gate | GateSection]:
    """Writes a gate where one makes the model faster at batch 1; else the model stays, and the section says why.

    Args:
        loaded: the caller's files.
        observed: how the model is called.
        compacted: what would be delivered.
        budget: share of samples, in (0, 1), whose answers the gate may change.
        folder: of the run.
        story: what people hear, and the clock.
    """
    try:
        gating = _Gating(loaded, observed, compacted, budget, folder, story)
        return gating.apply(gating.choose())
    except (_RefusedError, NotGateableError) as refusal:
        reason = f"{refusal}."
        story.note(f"No inference gate: {reason}")
        return compacted, GateSection(applied=False, reason=reason, budget=budget)


def gating_of(
    spec: PruningSpec, loaded: Loaded, observed: Observed, folder: RunFolder, story: Story
) -> Callable[[Compacted], tuple[Compacted, Gate | GateSection]] | None:
    """What writes the gate that a request asks for; it may change half as many answers as the margin allows."""
    if not isinstance(spec.strategy, DynamicStrategy) or not spec.strategy.inference_gate:
        return None
    budget = spec.evaluation.margin / 2

    def apply(compacted: Compacted) -> tuple[Compacted, Gate | GateSection]:
        return add_gate(loaded, observed, compacted, budget, folder, story)

    return apply


class _Gating:
    """One gate in the making."""

    def __init__(
        self,
        loaded: Loaded,
        observed: Observed,
        compacted: Compacted,
        budget: float,
        folder: RunFolder,
        story: Story,
    ) -> None:
        _require_scores(observed)
        self._observed = observed
        self._compacted = compacted
        self._budget = budget
        self._folder = folder
        self._story = story
        self._rows = _chosen_rows(observed)
        if len(self._rows) < samples_needed(budget):
            raise _RefusedError(
                f"fit and select have {len(self._rows)} samples, and {samples_needed(budget)} are needed to keep the "
                f"gate within {budget:g} of changed answers"
            )
        folder.write(UNGATED_FILE, compacted.module.save_to_buffer())
        self._archive = ModelArchive(folder.path(UNGATED_FILE), loaded.archive.device, {})
        self._ungated = self._archive.load().eval()
        self._require_plain()
        try:
            self._channels = find_channels(
                self._archive, observed.feed, observed.rule, observed.method_feeds, observed.sizes
            )
        except JobFailureError as error:
            raise _RefusedError(error.message.rstrip(".")) from error
        self._ordered, self._permutations = self._order()
        self._whole = self._outputs(self._ungated)

    def choose(self) -> _Trial:
        """The core with which a sample takes least time on average."""
        whole = self._time(self._ungated)
        trials, widest = [], None
        for share in CORE_SHARES:
            removal = find_core(self._channels.structure, self._groups, share)
            if not removal:
                raise _RefusedError(
                    "no layer's channels can be split into one block that is computed and one that is not"
                )
            module = self._gated(removal, -np.inf)
            scores = self._outputs(module)
            top = np.sort(scores, axis=1)[:, -2:]
            changed = scores.argmax(axis=1) != self._whole.argmax(axis=1)
            point = find_gate_point(top[:, 1] - top[:, 0], changed, self._budget)
            widest = max(widest or 0.0, point.skipped_share if point else 0.0)
            if point is not None:
                seconds = self._time(module) + (1 - point.skipped_share) * whole
                trials.append(_Trial(share, removal, point, seconds))
        best = min(trials, key=lambda trial: trial.seconds, default=None)
        if best is None or best.seconds > (1 - MIN_GAIN) * whole:
            came = f"at best {best.seconds / whole:.2f} of the time" if best else "no sample could be skipped"
            raise _RefusedError(
                f"it would not be faster at batch 1: {came}. The narrow cores that were tried tell too few samples apart "
                "for sure, or the layers are too small for the work saved to outweigh the gate"
            )
        return best

    def apply(self, trial: _Trial) -> tuple[Compacted, Gate]:
        """Writes the gate, and measures it on the samples that it was chosen on."""
        module = self._gated(trial.removal, trial.point.threshold)
        ratio = self._ratio(module)
        if ratio > 1 - MIN_GAIN:
            raise _RefusedError(f"measured at batch 1 it takes {ratio:.2f} of the time without it")
        structure = self._channels.structure
        section = GateSection(
            applied=True,
            threshold=trial.point.threshold,
            core_share=trial.share,
            core_macs=structure.cost(trial.removal).macs,
            whole_macs=structure.cost({}).macs,
            budget=self._budget,
            chosen_on=len(self._rows),
            changed_bound=trial.point.changed_bound,
        )
        note = (
            f"The gate computes {trial.share:.3g} of the channels first, and the rest only for samples that need it; "
            f"model.inference_gate_threshold = {trial.point.threshold:.4g} moves it (inf: never skip)."
        )
        final = replace(
            self._compacted,
            module=load_module(self._folder.path(GATED_FILE), "cpu", "gated model"),
            cut=after(self._compacted.cut, self._permutations),
            names={**self._compacted.names, **self._channels.names},
            masks=sliced_masks(self._compacted.masks, self._permutations, self._channels.names),
            notes=(*self._compacted.notes, note),
        )
        return final, Gate(self._ungated, structure.cut(trial.removal), trial.point, section)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _order(self) -> tuple[bytes, Cut]:
        """The archive with the channels that matter most first."""
        weights = thaw(self._archive.load())
        groups = self._channels.groups
        found = {
            number: order_by_gain(group, lambda name: get_tensor(weights, name)) for number, group in enumerate(groups)
        }
        order = {number: places for number, places in found.items() if places is not None}
        self._groups = tuple(order)
        permutations = find_permutations(self._channels.structure, order)
        module = load_module(self._archive.path, "cpu", "model")
        reorder(module, permutations)
        return module.save_to_buffer(), permutations

    def _gated(self, removal: Removal, threshold: float) -> torch.jit.ScriptModule:
        """Writes the gate into the ordered archive and the file; returns it in evaluation mode, on the job's device."""
        module = torch.jit.load(io.BytesIO(self._ordered))
        constants = len(enumerate_constants(module))
        insert_gate(module, self._channels.structure, removal, threshold, self._batched)
        self._folder.write(GATED_FILE, module.save_to_buffer())
        gated = load_module(self._folder.path(GATED_FILE), self._archive.device, "gated model").eval()
        if len(enumerate_constants(gated)) != constants:
            raise _RefusedError(
                "torch stores several of the archive's constants as one, so that it could not be proven"
            )
        return gated

    @property
    def _batched(self) -> tuple[int, ...]:
        feed = self._observed.feed
        total = len(feed.forms) + len(feed.scalars)
        return tuple(position for position in range(total) if position not in feed.scalars)

    def _outputs(self, module: torch.jit.ScriptModule) -> np.ndarray:
        """[n, classes] scores of the samples that gates are chosen on."""
        return self._observed.judging.outputs(Subject.of(module, self._observed.rule), self._rows).values

    def _time(self, module: torch.jit.ScriptModule) -> float:
        return time_alone(self._observed, (module,), self._rows[:TIMED_SAMPLES], self._story, TRIAL_SECONDS)[0]

    def _ratio(self, module: torch.jit.ScriptModule) -> float:
        models = (self._ungated, module)
        ungated, gated = time_alone(self._observed, models, self._rows[:TIMED_SAMPLES], self._story, FINAL_SECONDS)
        return gated / ungated

    def _require_plain(self) -> None:
        """Refuses models that give no scores, draw at random, or write to their inputs: the core's run must leave no trace."""
        inputs = self._observed.feed.inputs(self._rows[:1])
        kept = [one.clone() if isinstance(one, torch.Tensor) else one for one in inputs]
        outputs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            with torch.no_grad():
                outputs.append(self._ungated(*inputs))
            pairs = zip(inputs, kept, strict=True)
            if any(
                isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and not torch.equal(a, b) for a, b in pairs
            ):
                raise _RefusedError("the model writes to its inputs")
        if outputs[0].dim() != 2 or outputs[0].shape[1] < 2:
            shape = ["samples", *outputs[0].shape[1:]]
            raise _RefusedError(f"it compares scores of classes [samples, classes], and the model gives {shape}")
        if not torch.equal(outputs[0], outputs[1]):
            raise _RefusedError("the model gives another output each time for the same input")


def _require_scores(observed: Observed) -> None:
    rule, judging = observed.rule, observed.judging
    if judging.objective.task is not Task.CLASSIFICATION:
        task = judging.objective.task.value
        raise _RefusedError(
            f"it needs class scores to tell sure from unsure, and the task is {task}; send class numbers"
        )
    if rule.selector or rule.adds_batch_axis or rule.exact_batch not in {None, 1}:
        raise _RefusedError("it needs a model that gives one tensor [samples, classes] for any number of samples")
    if rule.stateful:
        raise _RefusedError("the model has a state, which skipping would change")


def _chosen_rows(observed: Observed) -> np.ndarray:
    """Rows of fit and select, in a seeded order, since the first are timed."""
    rows = np.concatenate([observed.splits.fit, observed.splits.select])
    return np.random.default_rng(observed.rule.seed).permutation(rows)[:MAX_SAMPLES]
