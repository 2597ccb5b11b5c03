"""Which of the weights found a request may prune."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import KERNEL_KINDS, FrozenUse, Weight, WeightKind, WeightSurvey, get_tensor
from pruning_server.pruning.values import ScoredInput

_MAX_REASONS = 3


@dataclass(frozen=True)
class Selection:
    """The weights that may be pruned, the report's list of what may not, and notes on the request's patterns."""

    weights: tuple[Weight, ...]
    frozen: tuple[FrozenUse, ...]
    notes: tuple[str, ...]

    def inputs(self, module: torch.jit.ScriptModule) -> tuple[ScoredInput, ...]:
        """The weights with their tensors in `module`, which must hold them under the same names."""
        return tuple(
            ScoredInput(name=weight.name, layer=weight.layer, kind=weight.kind, tensor=get_tensor(module, weight.name))
            for weight in self.weights
        )

    def tensors(self, module: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
        """The stored tensors by weight name, as `masks.apply` and `MaskHolder` take them."""
        return {weight.name: get_tensor(module, weight.name) for weight in self.weights}


def select(
    survey: WeightSurvey, *, include_biases: bool, include_norms: bool, exclude_layers: Sequence[str]
) -> Selection:
    """Kernels, and biases and norms only where asked, less what `exclude_layers` names.

    Args:
        survey: what `find_weights` found.
        include_biases: whether biases may be pruned.
        include_norms: whether scales and shifts of normalizations may be pruned.
        exclude_layers: shell wildcards, matched against the names of weights and of the modules around them; naming a
            module excludes everything in it.

    Raises:
        JobFailureError: NOTHING_PRUNABLE, saying why.
    """
    kinds = set(KERNEL_KINDS)
    kinds |= {WeightKind.BIAS} if include_biases else set()
    kinds |= {WeightKind.NORM} if include_norms else set()
    wanted = [weight for weight in survey.weights if weight.kind in kinds]
    excluded = {weight.name: pattern for weight in wanted if (pattern := _excluded_by(weight, exclude_layers))}
    kept = tuple(weight for weight in wanted if weight.name not in excluded)
    if not kept:
        raise JobFailureError(Reason.NOTHING_PRUNABLE, _why_nothing(survey, wanted))
    unmatched = [
        pattern for pattern in exclude_layers if not any(_matches(weight, pattern) for weight in survey.weights)
    ]
    return Selection(
        weights=kept,
        frozen=(*survey.frozen, *report_excluded(excluded)),
        notes=tuple(f"exclude_layers: {pattern!r} matches no layer of the model" for pattern in unmatched),
    )


def _excluded_by(weight: Weight, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if _matches(weight, pattern)), None)


def _matches(weight: Weight, pattern: str) -> bool:
    return matches((weight.name, *weight.aliases), pattern)


def matches(names: Iterable[str], pattern: str) -> bool:
    """Whether a shell wildcard of `exclude_layers` means a stored tensor with these names, or a module around one."""
    return any(fnmatchcase(part, pattern) for part in _with_modules(names))


def _with_modules(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def report_excluded(excluded: Mapping[str, str]) -> tuple[FrozenUse, ...]:
    """The report's entries for what the request excludes: the pattern by name."""
    return tuple(
        FrozenUse(
            op="",
            source="",
            reason=f"excluded by the request: {pattern}",
            layers=tuple(name for name, by in excluded.items() if by == pattern),
        )
        for pattern in dict.fromkeys(excluded.values())
    )


def _why_nothing(survey: WeightSurvey, wanted: Sequence[Weight]) -> str:
    if wanted:
        return f"exclude_layers excludes all {len(wanted)} prunable weights; exclude fewer layers"
    start = "no linear, convolution, embedding or recurrent weight of the model can be pruned"
    if survey.frozen:
        reasons = "; ".join(
            f"{', '.join(use.layers[:_MAX_REASONS])}{' and more' if len(use.layers) > _MAX_REASONS else ''}: {use.reason}"
            for use in survey.frozen[:_MAX_REASONS]
        )
        return f"{start}: {reasons}"
    return (
        f"{start}: it holds none. Send a model with trained weights; if it was quantized or compiled for a device, send"
        " the version before that"
    )
