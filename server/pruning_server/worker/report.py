"""Assembling the report from what the phases found."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from typing import Any

import torch

from pruning_server.graph.modules import exported_methods, get_tensor
from pruning_server.jobs.workspace import WorkerJob
from pruning_server.pruning.values import PruningPlan
from pruning_server.spec.report import (
    SCHEMA_VERSION,
    DataSection,
    FrozenSection,
    LayerSection,
    ModelSection,
    Provenance,
    Report,
)
from pruning_server.spec.report_strategy import StrategySection
from pruning_server.spec.request import (
    ConditionalStrategy,
    PruningSpec,
    Scope,
    StaticStrategy,
    Strategy,
    Target,
    TargetKind,
)
from pruning_server.worker.continuing import Told
from pruning_server.worker.feeding import Samples
from pruning_server.worker.phases.evaluate import Evaluated
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.phases.verify import Final

SPARSE_IS_NOT_FASTER = (
    "Zeros inside dense tensors save bytes in the archive, not time: latency and MACs stay what they were."
)


@dataclass(frozen=True)
class Results:
    """What every phase left."""

    loaded: Loaded
    observed: Observed
    pruned: Pruned
    trained: Trained
    final: Final
    evaluated: Evaluated
    told: Told


def assemble_report(job: WorkerJob, results: Results, timings: dict[str, float]) -> Report:
    """The whole report; `timings` in seconds by phase."""
    return Report(
        schema_version=SCHEMA_VERSION,
        job={"job_id": job.job_id, "attempt": job.attempt, "created": job.created, "device": job.device},
        model=_model(job, results),
        data=_data(job, results),
        strategy=_strategy(job, results),
        cost=results.evaluated.cost,
        accuracy=results.evaluated.accuracy,
        generalization=results.evaluated.generalization,
        robustness=results.evaluated.robustness,
        verify=results.final.proof,
        layers=_layers(results),
        frozen=_frozen(results),
        timings={**timings, "total": sum(timings.values())},
        provenance=_provenance(job),
    )


def _model(job: WorkerJob, results: Results) -> ModelSection:
    return ModelSection(
        original_sha256=job.model.sha256,
        original_bytes=job.model.size_bytes,
        pruned_sha256=hashlib.sha256(results.final.content).hexdigest(),
        pruned_bytes=len(results.final.content),
        kind="torchscript",
        format_version=results.final.format_version,
        methods=exported_methods(results.final.module),
        extra_files=tuple(sorted(results.loaded.archive.extra_files)),
    )


def _data(job: WorkerJob, results: Results) -> DataSection:
    observed, samples = results.observed, results.loaded.validation
    train = results.loaded.train
    return DataSection(
        validation_sha256=job.validation.sha256,
        train_sha256=job.train.sha256 if job.train else None,
        samples=len(samples),
        train_samples=len(train) if train is not None else None,
        splits=observed.splits.sizes(),
        split_source=observed.splits.source,
        stratified=observed.splits.stratified,
        inputs=_inputs(observed, samples),
        targets=_targets(samples),
        task=observed.objective.task.value,
        loss=observed.objective.loss_name,
        warnings=observed.splits.warnings,
        statistics=results.told.statistics,
        task_reason=observed.objective.reason,
    )


def _inputs(observed: Observed, samples: Samples) -> tuple[dict[str, Any], ...]:
    described = zip(samples.input_names, samples.input_dtypes, samples.inputs, observed.feed.forms, strict=True)
    return tuple(
        {"name": name, "dtype": dtype, "shape": list(array.shape[1:]), "fed_as": form.description}
        for name, dtype, array, form in described
    )


def _targets(samples: Samples) -> dict[str, Any] | None:
    if samples.targets is None:
        return None
    return {"dtype": str(samples.targets.dtype), "shape": list(samples.targets.shape[1:])}


def _strategy(job: WorkerJob, results: Results) -> StrategySection:
    strategy, target, plan = job.spec.strategy, job.spec.target, results.pruned.plan
    ranked = None if isinstance(strategy, ConditionalStrategy) else strategy
    # A threshold is compared with the weights themselves, whatever the criterion.
    scored = target is None or target.kind is not TargetKind.THRESHOLD
    notes = (
        *results.observed.notes,
        *plan.notes,
        *results.pruned.notes,
        *results.trained.notes,
        *results.final.compacted.notes,
        *((SPARSE_IS_NOT_FASTER,) if isinstance(plan, PruningPlan) and not results.final.compacted.is_smaller else ()),
    )
    return StrategySection(
        name=str(strategy.__struct_config__.tag),
        granularity=strategy.granularity.value,
        criterion=(ranked.criterion or StaticStrategy().criterion) if ranked is not None and scored else None,
        scope=(Scope.GLOBAL if ranked is None else ranked.scope).value,
        target=_target(target),
        achieved_sparsity=plan.sparsity,
        **_counts(results),
        recovery=_recovery(results.trained) | _dropout(job.spec, results.trained),
        notes=tuple(dict.fromkeys(notes)),
        details=plan.details,
        nm_pattern=_pattern(strategy),
        criterion_choice=plan.choice,
        gate=results.evaluated.gate,
        continued=results.told.continued,
    )


def _pattern(strategy: Strategy) -> str | None:
    pattern = None if isinstance(strategy, ConditionalStrategy) else strategy.nm_pattern
    return None if pattern is None else f"{pattern.n}:{pattern.m}"


def _counts(results: Results) -> dict[str, Any]:
    plan = results.pruned.plan
    if isinstance(plan, PruningPlan):
        return {
            "prunable_weights": plan.prunable_weights,
            "pruned_weights": plan.removed_weights,
            "removable_channels": None,
            "removed_channels": results.final.compacted.empty_channels,
        }
    cost = results.evaluated.cost
    return {
        "prunable_weights": cost.original.parameters,
        "pruned_weights": cost.original.parameters - cost.pruned.parameters,
        "removable_channels": plan.removable_channels,
        "removed_channels": plan.removed_channels,
    }


def _target(target: Target | None) -> dict[str, Any]:
    return {} if target is None else {"kind": target.kind.value, "value": target.value}


def _recovery(trained: Trained) -> dict[str, Any]:
    recovered = trained.recovered
    if recovered is None:
        return {"disabled": True}
    return {
        "disabled": False,
        "kept": recovered.kept,
        "learning_rate": recovered.learning_rate,
        "epochs": len(recovered.history),
        "batch_size": trained.batch_size,
        "select": [
            {"name": rung.name, "metric": rung.score.metric, "loss": rung.score.loss, "kept": rung.kept}
            for rung in recovered.rungs
        ],
        "rungs": [
            {
                "name": rung.name,
                "kept": rung.kept,
                "metric_before": rung.before.metric,
                "metric": rung.score.metric,
                "gain": rung.gain,
                "loss_before": rung.before.loss,
                "loss": rung.score.loss,
                "seconds": rung.seconds,
                "gradient_steps": rung.steps,
            }
            for rung in recovered.rungs
        ],
        "history": [
            {
                "epoch": epoch.epoch,
                "learning_rate": epoch.learning_rate,
                "train_loss": epoch.train_loss,
                "select_metric": epoch.select_metric,
                "select_loss": epoch.select_loss,
            }
            for epoch in recovered.history
        ],
    }


def _dropout(spec: PruningSpec, trained: Trained) -> dict[str, Any]:
    """`asked`: the rate of the request; `layers`: dropouts whose rate was set, or lowered where none was asked for."""
    rates = trained.dropout
    if rates is None:
        return {}
    return {"dropout": {"asked": spec.fine_tune.dropout, "layers": rates.layers, "unset": rates.unset}}


def _layers(results: Results) -> tuple[LayerSection, ...]:
    """Weights that could be pruned, and every other tensor that was cut."""
    observed, compacted = results.observed, results.final.compacted
    kept: dict[str, dict[str, tuple[int, ...]]] = {}
    for cut in compacted.cut:
        kept.setdefault(compacted.names.get(cut.tensor, cut.tensor), {})[str(cut.axis)] = cut.kept
    listed = observed.survey.weights if results.pruned.cut else observed.selection.weights
    kinds = {weight.name: weight.kind.value for weight in observed.survey.weights}
    names = dict.fromkeys([*(weight.name for weight in listed), *kept])
    return tuple(_layer(results, name, kinds.get(name, "tensor"), kept.get(name, {})) for name in names)


def _layer(results: Results, name: str, kind: str, kept: dict[str, tuple[int, ...]]) -> LayerSection:
    before, after = get_tensor(results.loaded.subject, name), get_tensor(results.final.weights, name)
    return LayerSection(
        name=name,
        kind=kind,
        shape_before=tuple(before.shape),
        shape_after=tuple(after.shape),
        kept=kept,
        sparsity=1 - int(torch.count_nonzero(after)) / before.numel() if before.numel() else 0.0,
    )


def _frozen(results: Results) -> tuple[FrozenSection, ...]:
    observed, plan = results.observed, results.pruned.plan
    found = observed.selection.frozen
    if observed.channels is not None and not isinstance(plan, PruningPlan):
        found = (*observed.channels.frozen, *plan.frozen)
    elif isinstance(plan, PruningPlan):
        found = (*found, *plan.frozen)
    return tuple(FrozenSection(op=use.op, source=use.source, reason=use.reason, layers=use.layers) for use in found)


def _provenance(job: WorkerJob) -> Provenance:
    return Provenance(
        job_id=job.job_id,
        seed=job.spec.seed,
        service_version=job.service_version,
        torch_version=str(torch.__version__),
        python_version=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=job.device,
        threads=job.threads,
        created=job.created,
        # On the CPU the same seed gives the same bits; some CUDA kernels add in no fixed order.
        deterministic=job.device == "cpu",
    )
