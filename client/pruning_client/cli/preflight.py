"""Asks the server, before anything is sent, whether it could do what is asked."""

from __future__ import annotations

from pathlib import Path

from pruning_client.client import PruningClient
from pruning_client.errors import InvalidRequestError, UnimplementedError
from pruning_client.spec import Conditional, Granularity, Submission
from pruning_client.text import bytes_text
from pruning_client.values import ServerInfo, StrategyInfo
from pruning_client.wire.spec import strategy_name, target_name


def preflight(client: PruningClient, submission: Submission, files: list[Path]) -> None:
    """Checks device, file sizes, strategy, granularity, target and criterion against what the server offers; then asks it.

    Raises:
        InvalidRequestError: the server has no such device or criterion, or takes no file of that size.
        UnimplementedError: the server knows the strategy, granularity or target and does not do it.
        PruningClientError: the server cannot be asked.
    """
    info = client.server_info()
    _check_device(submission.device, info)
    _check_sizes(files, info)
    try:
        strategies = client.list_strategies()
    except UnimplementedError:  # another version: it will answer the request itself
        return
    offered = next((s for s in strategies if s.name == strategy_name(submission.strategy)), None)
    if offered is not None:
        _check_strategy(submission, offered, info.version)
    client.check(submission)


def _check_device(device: str, info: ServerInfo) -> None:
    names = [d.name for d in info.devices]
    is_there = device == "auto" or device in names or (device == "cuda" and any(n.startswith("cuda") for n in names))
    if names and not is_there:
        raise InvalidRequestError(
            f"the server has no device {device}; it has {', '.join(names)} (--device)", reason="UNKNOWN_DEVICE"
        )


def _check_sizes(files: list[Path], info: ServerInfo) -> None:
    for path in files:
        size_bytes = path.stat().st_size if path.is_file() else 0
        if info.max_artifact_bytes and size_bytes > info.max_artifact_bytes:
            raise InvalidRequestError(
                f"{path} has {bytes_text(size_bytes)}; the server takes at most {bytes_text(info.max_artifact_bytes)}",
                reason="ARTIFACT_TOO_LARGE",
            )


def _check_strategy(submission: Submission, offered: StrategyInfo, version: str) -> None:
    strategy = submission.strategy
    if not offered.available:
        raise _unimplemented(f"strategy {offered.name}", version)
    granularity = strategy.granularity or Granularity.WEIGHT
    if offered.granularities and granularity not in offered.granularities:
        raise _unimplemented(f"{offered.name} pruning at granularity {granularity}", version)
    target = None if submission.target is None else target_name(submission.target)
    if offered.targets and target is not None and target not in offered.targets:
        instead = f"; give one of {', '.join(offered.targets)}"
        raise _unimplemented(f"{offered.name} pruning to a {target}", version, instead)
    criterion = "" if isinstance(strategy, Conditional) else strategy.criterion
    names = [c.name for c in offered.criteria]
    if names and criterion and criterion not in names:
        raise InvalidRequestError(
            f"criterion {criterion!r} is not known to the server; it is one of {', '.join(names)}",
            reason="UNKNOWN_CRITERION",
        )
    chosen = next((c for c in offered.criteria if c.name == criterion), None)
    if chosen is not None and chosen.granularities and granularity not in chosen.granularities:
        fitting = [c.name for c in offered.criteria if granularity in c.granularities]
        raise InvalidRequestError(
            f"criterion {criterion!r} scores whole channels only; with granularity {granularity} use one of"
            f" {', '.join(fitting)}",
            reason="INVALID_FIELD",
        )


def _unimplemented(feature: str, version: str, instead: str = "") -> UnimplementedError:
    return UnimplementedError(
        f"{feature} is not implemented in that server (version {version or 'unknown'}){instead}",
        reason="NOT_IMPLEMENTED",
        metadata={"feature": feature},
    )
