"""What each family of ops does to labels: one file per family, one line here."""

from __future__ import annotations

from pruning_server.graph.coupling.registry import Registry
from pruning_server.graph.coupling.rules import (
    attention,
    convolution,
    creation,
    einsum,
    elementwise,
    embedding,
    encoder,
    gating,
    indexing,
    joining,
    movement,
    normalization,
    padding,
    pooling,
    products,
    reading,
    recurrent,
    reduction,
)

REGISTRY = Registry(
    attention.RULES,
    convolution.RULES,
    creation.RULES,
    einsum.RULES,
    elementwise.RULES,
    embedding.RULES,
    encoder.RULES,
    gating.RULES,
    indexing.RULES,
    joining.RULES,
    movement.RULES,
    normalization.RULES,
    padding.RULES,
    pooling.RULES,
    products.RULES,
    reading.RULES,
    recurrent.RULES,
    reduction.RULES,
)
