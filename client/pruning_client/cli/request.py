"""The request that the flags of `prune submit` describe."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from pruning_client.adapters import check_dataset_path
from pruning_client.cli.arguments import UsageError
from pruning_client.cli.paths import check_readable
from pruning_client.spec import (
    ChannelConstraints,
    Conditional,
    Dynamic,
    Granularity,
    LatencyRatio,
    Layout,
    Loss,
    MacsRatio,
    MaxAccuracyDrop,
    MultipleTestingCorrection,
    ParameterRatio,
    Preprocessing,
    Robustness,
    ScalarValue,
    Scope,
    Sparsity,
    Static,
    Strategy,
    Submission,
    Target,
    Task,
    Threshold,
    Verdict,
)

_TARGETS: dict[str, type[Target]] = {
    "threshold": Threshold,
    "sparsity": Sparsity,
    "parameter_ratio": ParameterRatio,
    "macs_ratio": MacsRatio,
    "latency_ratio": LatencyRatio,
    "max_accuracy_drop": MaxAccuracyDrop,
}
# Flags that only some strategies have.
_STRATEGIES_BY_FLAG = {
    "condition": ("conditional",),
    "risk": ("conditional",),
    "correction": ("conditional",),
    "schedule": ("dynamic",),
    "continue_from": ("dynamic",),
    "inference_gate": ("dynamic",),
    "criterion": ("static", "dynamic"),
    "scope": ("static", "dynamic"),
}
# Flags that only say something about what is removed as a whole.
_CHANNEL_FLAGS = ("min_channels", "multiple")


def build_submission(options: Namespace) -> Submission:
    """Returns the request; files are named by path and not read yet.

    Raises:
        UsageError: flags contradict each other, or something is missing.
    """
    _check_flags(options)
    return Submission(
        model=options.model,
        validation=options.validation,
        train=options.train,
        strategy=_strategy(options),
        target=_target(options),
        device=options.device,
        epochs=options.epochs,
        dropout=options.dropout,
        recovery=not options.no_recovery,
        margin=options.margin,
        required_verdict=None if options.require_verdict is None else Verdict(options.require_verdict),
        robustness=None if options.robustness is None else Robustness(options.robustness),
        include_samples=not options.no_samples,
        preprocessing=Preprocessing(
            scale=options.scale,
            mean=options.mean,
            std=options.std,
            layout=None if options.layout is None else Layout(options.layout),
        ),
        task=None if options.task is None else Task(options.task),
        loss=_loss(options.loss),
        arguments=arguments_by_position(options.arg),
        output_selector=options.output_selector,
        exclude_layers=tuple(options.exclude_layers),
        seed=options.seed,
        timeout_seconds=options.timeout,
        dynamic_axes=axes_by_input(options.dynamic_axes),
        priority=options.priority,
    )


def check_inputs(submission: Submission) -> list[Path]:
    """Checks that every file of the request is there and readable, and returns them.

    Raises:
        BadInputError: one is not.
    """
    files = [Path(str(submission.model)), Path(str(submission.validation))]
    check_readable("MODEL", files[0])
    check_dataset_path(files[1])
    if submission.train is not None:
        files.append(Path(str(submission.train)))
        check_dataset_path(files[-1])
    if submission.loss is not None and not isinstance(submission.loss, Loss):
        files.append(Path(str(submission.loss)))
        check_readable("--loss", files[-1])
    for path in files[1:]:
        if path.is_file():
            check_readable("dataset", path)
        elif submission.preprocessing.layout is Layout.NHWC:
            raise UsageError(f"--layout nhwc does not fit {path}: a folder of images is sent as nchw")
    return files


def arguments_by_position(pairs: list[tuple[int, ScalarValue]]) -> dict[int, ScalarValue]:
    """Returns the scalar arguments by position.

    Raises:
        UsageError: a position is given twice.
    """
    found: dict[int, ScalarValue] = {}
    for position, value in pairs:
        if position in found:
            raise UsageError(f"argument --arg: position {position} is given twice")
        found[position] = value
    return found


def axes_by_input(pairs: Iterable[tuple[int, tuple[int, ...]]]) -> dict[int, tuple[int, ...]]:
    """Returns the axes of any length by input.

    Raises:
        UsageError: an input is given twice.
    """
    found: dict[int, tuple[int, ...]] = {}
    for position, axes in pairs:
        if position in found:
            raise UsageError(f"argument --dynamic-axes: input {position} is given twice")
        found[position] = axes
    return found


def _check_flags(options: Namespace) -> None:
    for flag, strategies in _STRATEGIES_BY_FLAG.items():
        if getattr(options, flag) is not None and options.strategy not in strategies:
            name = flag.replace("_", "-")
            raise UsageError(f"argument --{name}: --strategy {options.strategy} has none; drop one of the two")
    granularity, _ = options.granularity or (Granularity.WEIGHT, None)
    # Without a granularity that of a condition's features is taken, which the server knows.
    left_open = options.strategy == "conditional" and not options.granularity
    for flag in () if left_open else _CHANNEL_FLAGS:
        if getattr(options, flag) is not None and granularity not in (Granularity.CHANNEL, Granularity.HEAD):
            name = flag.replace("_", "-")
            raise UsageError(f"argument --{name}: needs --granularity channel or head")
    if options.strategy == "conditional" and bool((options.condition or "").strip()) == (options.risk is not None):
        raise UsageError("--strategy conditional needs a --condition or a --risk, one of the two")
    if options.risk is not None and _target(options) is not None:
        raise UsageError("argument --risk: it decides how far to prune; drop the target")
    if _needs_target(options) and _target(options) is None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in _TARGETS)
        raise UsageError(f"no target: how far to prune? Give one of {flags}")
    if options.no_recovery and options.epochs:
        raise UsageError("argument --epochs: --no-recovery does no fine-tuning; drop one of the two")
    if options.dropout is not None and (options.no_recovery or options.epochs == 0):
        raise UsageError(
            "argument --dropout: nothing is fine-tuned with --no-recovery or --epochs 0; drop one of the two"
        )
    lengths = {len(options.mean), len(options.std)} - {0, 1}
    if len(lengths) > 1:
        raise UsageError(f"--mean has {len(options.mean)} values and --std {len(options.std)}; one per channel each")


def _needs_target(options: Namespace) -> bool:
    """Patterns and conditions say how far, and so may a schedule that the data moves: the server knows which do."""
    _, pattern = options.granularity or (Granularity.WEIGHT, None)
    judged = options.strategy == "dynamic" and options.schedule is not None
    return pattern is None and not judged and options.strategy != "conditional"


def _target(options: Namespace) -> Target | None:
    for name, kind in _TARGETS.items():
        value = getattr(options, name)
        if value is not None:
            return kind(value)
    return None


def _strategy(options: Namespace) -> Strategy:
    granularity, pattern = options.granularity or (Granularity.WEIGHT, None)
    scope = Scope(options.scope) if options.scope else None
    channels = ChannelConstraints(min_channels=options.min_channels, multiple=options.multiple)
    if options.strategy == "conditional":
        if pattern is not None:
            raise UsageError("argument --granularity: --strategy conditional has no n:m pattern")
        asked = granularity if options.granularity else None
        return Conditional(
            condition=options.condition or "",
            risk=options.risk,
            granularity=asked,
            correction=None
            if options.correction is None
            else MultipleTestingCorrection(options.correction.replace("-", "_")),
            channels=channels,
        )
    if options.strategy == "dynamic":
        return Dynamic(
            granularity=granularity,
            nm_pattern=pattern,
            criterion=options.criterion or "",
            scope=scope or Scope.GLOBAL,
            schedule=options.schedule or "",
            continue_from_job_id=options.continue_from or "",
            inference_gate=bool(options.inference_gate),
            channels=channels,
        )
    return Static(
        granularity=granularity,
        nm_pattern=pattern,
        criterion=options.criterion or "",
        scope=scope,
        channels=channels,
    )


def _loss(text: str | None) -> Loss | Path | None:
    if text is None:
        return None
    name = text.lower().replace("-", "_")
    if name in set(Loss):
        return Loss(name)
    path = Path(text)
    if not path.exists():
        raise UsageError(f"argument --loss: {text!r} is neither a file nor one of {', '.join(Loss)}")
    return path
