"""Reconstruction of models that take one batch size only: each layer from runs over several batches.

What a run of the whole set does at once is done layer by layer here, so that every layer costs runs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.chains import Link, LinkKind
from pruning_server.recovery.chain_ends import Layer, Method, Pair, Reconstructed, Sampler, Work
from pruning_server.recovery.layer_fit import OTHER_PLACES, RECTIFIED_ROUNDS, kept_features, solve_layer, target_of
from pruning_server.recovery.linear_ops import channel_rows
from pruning_server.recovery.ridge import Ridge

MAX_RUNS, MAX_RUNS_PER_LAYER = 2048, 128


def reconstruct_by_runs(pair: Pair, work: Work, seed: int) -> Reconstructed:
    """Layer by layer, each from runs over several batches; what is found is written at once, for the runs of the next."""
    layers = {name: layer for name, layer in work.layers.items() if layer.method is Method.REFIT}
    size = pair.exact_batch or 1
    runs = min(pair.samples // size, MAX_RUNS_PER_LAYER, max(1, MAX_RUNS // max(1, len(layers))))
    order = np.random.default_rng(seed).permutation(pair.samples)[: runs * size].reshape(runs, size)
    samplers, inputs = [Sampler(layers, seed + number, runs) for number in range(runs)], []
    for rows, sampler in zip(order.tolist(), samplers, strict=True):
        for_original, for_pruned = pair.inputs(rows)
        pair.original(for_original, sampler)
        inputs.append(for_pruned)
    refitted, skipped = 0, dict(work.skipped)
    for name, layer in layers.items():
        gathered = [_Gathering(pair, name, layer, sampler) for sampler in samplers]
        for arguments, one in zip(inputs, gathered, strict=True):
            pair.pruned(arguments, one)
        if _refit(pair, layer, gathered):
            refitted += 1
        else:
            skipped[name] = OTHER_PLACES
    return Reconstructed(refitted, 0, skipped)


@dataclass(frozen=True)
class _Rows:
    """[groups, rows, features], [rows, out], [rows, out], [out]."""

    design: torch.Tensor
    target: torch.Tensor
    present: torch.Tensor
    scale: torch.Tensor


class _Gathering:
    """Takes the rows of one layer in one run of the pruned model."""

    def __init__(self, pair: Pair, name: str, layer: Layer, sampler: Sampler) -> None:
        self._pair, self._name, self._layer, self._sampler = pair, name, layer, sampler
        self._target: torch.Tensor | None = None
        self._design: torch.Tensor | None = None
        self._followed = 0
        self.call: LinearCall | None = None
        self.rows: _Rows | None = None

    def linear(self, call: LinearCall, link: Link) -> None:
        """See `Visitor`."""
        if call.weight == self._name and call.weight in self._sampler.targets:
            self.call, self._target = call, target_of(self._pair, self._sampler, call)
            if self._target is not None:
                # At once, as an op in place may change the input before the chain ends.
                self._design = call.design(self._sampler.positions[self._name]).float()
            self._reached(link, call.output)

    def follow(self, link: Link, value: torch.Tensor) -> None:
        """See `Visitor`."""
        if link.weight == self._name and link.kind is not LinkKind.RECTIFIER:
            self._followed += 1
            self._reached(link, value)

    def other_use(self, weight: str) -> None:
        """See `Visitor`."""

    def _reached(self, link: Link, value: torch.Tensor) -> None:
        if self._design is None or self._target is None or self._followed != self._layer.links:
            return
        positions = self._sampler.positions[self._name]
        present = channel_rows(value, link.channel_axis, positions).float()
        scale = torch.ones_like(present[0]) if link.scale is None else link.scale.to(present)
        self.rows = _Rows(self._design, self._target, present, scale)


def _refit(pair: Pair, layer: Layer, gathered: Sequence[_Gathering]) -> bool:
    """Writes the layer's new kernel and constant; whether there are any."""
    calls = [one.call for one in gathered if one.call is not None]
    found = [one for one in gathered if one.rows is not None]
    if not calls or len(found) < len(gathered):
        return False
    call, rows = calls[0], [one.rows for one in found if one.rows is not None]
    design = torch.cat([one.design for one in rows], dim=1)
    target, present = torch.cat([one.target for one in rows]), torch.cat([one.present for one in rows])
    ridge = Ridge(design, intercept=layer.bias is not None, kept=kept_features(pair, call))
    rounds = RECTIFIED_ROUNDS if layer.rectified else 0
    solved = solve_layer(call, ridge, target, present, rows[0].scale, rounds)
    if solved is None:
        return False
    kernel, shift = solved
    with torch.no_grad():
        pair.tensor(call.weight).add_(kernel.to(call.kernel.dtype))
        if layer.bias is not None:
            held = pair.tensor(layer.bias)
            held.add_((-shift if layer.negated else shift).to(held.dtype))
    return True
