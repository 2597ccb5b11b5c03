"""Closed-form reconstruction: kernels of the pruned model refitted so that their results are the original's again.

Layer by layer, in the order of execution, with inputs from the model as far as it has been refitted; what is matched is
the result at the end of its chain: the sum of a residual block, so that a block makes up for what earlier ones lost, and
what a ReLU lets through of it. Unlabelled samples, no gradient.

Sources: He, Zhang and Sun, 2017, arXiv 1707.06168 (least squares on kept inputs, residual compensation); Zhang, Zou, He
and Sun, 2015, arXiv 1505.06798 (asymmetric, ReLU-aware targets).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.chains import Link, LinkKind
from pruning_server.recovery.chain_ends import NO_DESIGN, Layer, Method, Pair, Reconstructed, Sampler, Survey
from pruning_server.recovery.layer_fit import (
    NO_SOLUTION,
    OTHER_PLACES,
    RECTIFIED_ROUNDS,
    kept_features,
    solve_layer,
    target_of,
)
from pruning_server.recovery.linear_ops import channel_rows, per_output, run_linear
from pruning_server.recovery.reconstruction_runs import reconstruct_by_runs
from pruning_server.recovery.ridge import Ridge

__all__ = ["Method", "Pair", "Reconstructed", "reconstruct"]

SAMPLES = 768
# Values of activations that may be held at once.
MAX_ACTIVATIONS = 4e8
SURVEYED_SAMPLES = 2


def reconstruct(pair: Pair, method: Method, seed: int) -> Reconstructed:
    """Writes new kernels, biases and running means into the pruned model; nothing where no batch can be made.

    Raises:
        RuntimeError: a model cannot be run step by step, or raised; nothing has been written then.
    """
    if pair.samples < (pair.exact_batch or 1):
        return Reconstructed(0, 0, {})
    survey = Survey()
    few = pair.exact_batch or min(SURVEYED_SAMPLES, pair.samples)
    for_original, for_pruned = pair.inputs(range(few))
    pair.original(for_original, survey)
    work = survey.work(pair, method)
    if not work.layers:
        return Reconstructed(0, 0, work.skipped)
    if pair.exact_batch is not None and method is Method.REFIT:
        return reconstruct_by_runs(pair, work, seed)
    rows = _chosen_rows(pair, survey.largest / few, seed)
    for_original, for_pruned = pair.inputs(rows)
    sampler = Sampler(work.layers, seed)
    pair.original(for_original, sampler)
    refit = _Refit(pair, sampler)
    pair.pruned(for_pruned, refit)
    refit.write()
    return Reconstructed(refit.refitted, refit.scaled, {**work.skipped, **refit.skipped})


def _chosen_rows(pair: Pair, values_per_sample: float, seed: int) -> list[int]:
    """Which samples to run, together: as many as their activations allow."""
    count = min(pair.samples, SAMPLES, max(1, int(MAX_ACTIVATIONS / max(1.0, values_per_sample))))
    order = np.random.default_rng(seed).permutation(pair.samples)
    return sorted(int(row) for row in order[: pair.exact_batch or count])


@dataclass
class _Open:
    """A layer between its op and the end of its chain."""

    call: LinearCall
    layer: Layer
    ridge: Ridge
    target: torch.Tensor
    followed: int = 0


class _Refit:
    """Refits in a run of the pruned model; every value after a refitted layer is what the new kernel gives."""

    def __init__(self, pair: Pair, sampler: Sampler) -> None:
        self._pair = pair
        self._sampler = sampler
        self._open: dict[str, _Open] = {}
        self._kernels: dict[str, torch.Tensor] = {}
        self._shifts: dict[str, torch.Tensor] = {}
        self.refitted = 0
        self.scaled = 0
        self.skipped: dict[str, str] = {}

    # --- The run ------------------------------------------------------------------------------------------------------

    def linear(self, call: LinearCall, link: Link) -> None:
        """See `Visitor`."""
        layer = self._sampler.layers.get(call.weight)
        if layer is None or call.weight not in self._sampler.targets:
            return
        target = target_of(self._pair, self._sampler, call)
        if target is None:
            self.skipped[call.weight] = OTHER_PLACES
            return
        if layer.method is Method.AFFINE:
            self._scale(call, link, layer, target)
            return
        design = call.design(self._sampler.positions[call.weight]).float()
        ridge = Ridge(design, intercept=layer.bias is not None, kept=kept_features(self._pair, call))
        # The end of the chain asks what the new kernel makes of the input, which may be another by then.
        held = replace(call, inputs=call.inputs.clone()) if layer.overwritten else call
        self._open[call.weight] = _Open(held, layer, ridge, target)
        self._reached(link, call.output)

    def follow(self, link: Link, value: torch.Tensor) -> None:
        """See `Visitor`."""
        one = self._open.get(link.weight)
        if one is None:
            return
        if link.kind is not LinkKind.RECTIFIER:
            one.followed += 1
            self._reached(link, value)
        elif one.layer.rectified and one.followed == one.layer.links:
            # What is rectified nobody else reads, so that fitting could wait until here.
            self._fit(self._open.pop(link.weight), link, value, rounds=RECTIFIED_ROUNDS)

    def other_use(self, weight: str) -> None:
        """See `Visitor`."""

    def write(self) -> None:
        """Puts what was found into the pruned model."""
        with torch.no_grad():
            for name, kernel in self._kernels.items():
                self._pair.tensor(name).copy_(kernel)
            for name, shift in self._shifts.items():
                self._pair.tensor(name).add_(shift.to(self._pair.tensor(name).dtype))

    # --- One layer ----------------------------------------------------------------------------------------------------

    def _reached(self, link: Link, value: torch.Tensor) -> None:
        one = self._open[link.weight]
        if one.followed == one.layer.links and not one.layer.rectified:
            self._fit(self._open.pop(link.weight), link, value, rounds=0)

    def _fit(self, one: _Open, link: Link, value: torch.Tensor, *, rounds: int) -> None:
        """Refits the kernel, `rounds` times more with what a rectifier would let through, and corrects the value."""
        call = one.call
        present = channel_rows(value, link.channel_axis, self._sampler.positions[call.weight]).float()
        scale = torch.ones_like(present[0]) if link.scale is None else link.scale.to(present)
        found = solve_layer(call, one.ridge, one.target, present, scale, rounds)
        if found is None:
            self.skipped[call.weight] = NO_SOLUTION
            return
        kernel, shift = found
        self._kernels[call.weight] = call.kernel.detach() + kernel.to(call.kernel.dtype)
        if one.layer.bias is not None:
            self._shifts[one.layer.bias] = -shift if one.layer.negated else shift
        self.refitted += 1
        # With the scale in kernel and bias there is one large value less at a time.
        dtype = call.kernel.dtype
        value.add_(run_linear(call, (kernel * per_output(scale, call)).to(dtype), (shift * scale).to(dtype)))

    def _scale(self, call: LinearCall, link: Link, layer: Layer, target: torch.Tensor) -> None:
        present = channel_rows(call.output, link.channel_axis, self._sampler.positions[call.weight]).float()
        bias = self._pair.tensor(layer.bias).detach().float() if layer.bias else torch.zeros_like(present[0])
        spread = present.std(dim=0, correction=0)
        factor = torch.where(spread > 0, target.std(dim=0, correction=0) / spread.clamp_min(1e-12), 1.0)
        shift = target.mean(dim=0) - factor * present.mean(dim=0)
        if not bool(torch.isfinite(factor).all() & torch.isfinite(shift).all()):
            return
        if call.geometry is not None and call.geometry.transposed and call.groups > 1:
            self.skipped[call.weight] = NO_DESIGN
            return
        self._kernels[call.weight] = call.kernel.detach() * per_output(factor, call).to(call.kernel.dtype)
        if layer.bias is not None:
            self._shifts[layer.bias] = (factor - 1) * bias + shift
        call.output.movedim(link.channel_axis, -1).mul_(factor.to(call.output.dtype)).add_(shift.to(call.output.dtype))
        self.scaled += 1
