"""Least squares toward the present weights: which change of a kernel takes its result nearest to a wanted one.

Source: Hoerl and Kennard, 1970, Technometrics 12(1):55-67 (ridge regression); for pruned nets He, Zhang and Sun, 2017,
arXiv 1707.06168.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Relative to the mean square of a feature; tried on samples that the solution has not seen.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Beyond this many features one strength must do, as each costs features^3.
MAX_TRIED_FEATURES = 2048
SINGLE_STRENGTH = 1e-2
HELD_OUT_SHARE = 0.25
MIN_TRIED_ROWS = 40
CONJUGATE_STEPS = 60
CONJUGATE_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Change:
    """What to add to a kernel and its intercept.

    Attributes:
        kernel: [groups, features, out of the group].
        intercept: [groups, out of the group]; zeros where there is none.
    """

    kernel: torch.Tensor
    intercept: torch.Tensor


class Ridge:
    """One design matrix, any number of wanted results.

    Args:
        design: [groups, rows, features], rows of one sample next to each other.
        intercept: whether a constant may be added to the result.
        kept: [groups, features, out of the group], False where the kernel is pruned and must stay 0; None: all kept.
    """

    def __init__(self, design: torch.Tensor, *, intercept: bool, kept: torch.Tensor | None = None) -> None:
        self._design = design
        self._intercept = intercept
        self._kept = kept
        self._strength: float | None = None
        self._all = _System(design, intercept=intercept)

    def solve(self, wanted: torch.Tensor) -> Change:
        """The change for a result that is to change by `wanted` [groups, rows, out of the group]."""
        if self._strength is None:
            self._strength = self._chosen(wanted)
        return self._all.solve(wanted, self._strength, self._kept)

    def result(self, change: Change) -> torch.Tensor:
        """[groups, rows, out of the group]: what a change adds to the result."""
        return self._design @ change.kernel + change.intercept.unsqueeze(1)

    def _chosen(self, wanted: torch.Tensor) -> float:
        """The strength that does best on the last rows, when the others are fitted."""
        rows, features = self._design.shape[1:]
        if features > MAX_TRIED_FEATURES or rows < MIN_TRIED_ROWS:
            return SINGLE_STRENGTH
        seen = rows - int(rows * HELD_OUT_SHARE)
        system = _System(self._design[:, :seen], intercept=self._intercept)
        weights = 1 / wanted.square().mean(dim=1, keepdim=True).clamp_min(1e-12)
        errors = []
        for strength in _tried(self._kept):
            change = system.solve(wanted[:, :seen], strength, self._kept)
            given = self._design[:, seen:] @ change.kernel + change.intercept.unsqueeze(1)
            errors.append(float(((wanted[:, seen:] - given).square() * weights).mean()))
        return _tried(self._kept)[errors.index(min(errors))]


class _System:
    """The normal equations of some rows, centred where there is an intercept."""

    def __init__(self, design: torch.Tensor, *, intercept: bool) -> None:
        self._mean = design.mean(dim=1, keepdim=True) if intercept else design.new_zeros(())
        self._centred = design - self._mean if intercept else design
        self._intercept = intercept
        rows = design.shape[1]
        self._gram = (self._centred.mT @ self._centred).double() / rows
        self._factors: dict[float, torch.Tensor] = {}

    def solve(self, wanted: torch.Tensor, strength: float, kept: torch.Tensor | None) -> Change:
        average = wanted.mean(dim=1, keepdim=True) if self._intercept else wanted.new_zeros(())
        moments = (self._centred.mT @ (wanted - average)).double() / wanted.shape[1]
        if kept is None:
            kernel = torch.cholesky_solve(moments, self._factor(strength))
        else:
            kernel = _conjugate(self._regular(strength), moments, kept)
        kernel = kernel.to(wanted.dtype)
        if not self._intercept:
            return Change(kernel, wanted.new_zeros(kernel.shape[0], kernel.shape[2]))
        return Change(kernel, (average - self._mean @ kernel).squeeze(1))

    def _regular(self, strength: float) -> torch.Tensor:
        size = self._gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-12)
        identity = torch.eye(self._gram.shape[1], dtype=self._gram.dtype, device=self._gram.device)
        return self._gram + strength * size[:, None, None] * identity

    def _factor(self, strength: float) -> torch.Tensor:
        if strength not in self._factors:
            self._factors[strength] = torch.linalg.cholesky(self._regular(strength))
        return self._factors[strength]


def _tried(kept: torch.Tensor | None) -> Sequence[float]:
    return STRENGTHS if kept is None else STRENGTHS[1:4]


def _conjugate(gram: torch.Tensor, moments: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Solves gram @ x = moments for each column among its kept features: conjugate gradients, all columns at once.

    Source: Hestenes and Stiefel, 1952, with Jacobi's preconditioner.
    """
    solution = torch.zeros_like(moments)
    residual = moments * kept
    inverse = 1 / gram.diagonal(dim1=1, dim2=2).unsqueeze(2)
    direction = inverse * residual
    product = (residual * direction).sum(dim=1, keepdim=True)
    first = product.clone()
    for _ in range(CONJUGATE_STEPS):
        image = (gram @ direction) * kept
        length = product / (direction * image).sum(dim=1, keepdim=True).clamp_min(1e-300)
        solution += length * direction
        residual -= length * image
        scaled = inverse * residual
        following = (residual * scaled).sum(dim=1, keepdim=True)
        if bool((following <= CONJUGATE_TOLERANCE * first).all()):
            break
        direction = scaled + (following / product.clamp_min(1e-300)) * direction
        product = following
    return solution
