"""What every use of a criterion needs: weights without NaN, and a seed of each weight's own."""

from __future__ import annotations

import hashlib

import torch

from pruning_server.errors import JobFailureError, Reason


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Does nothing if every value is finite.

    Raises:
        JobFailureError: MODEL_NOT_FINITE, with the number of values that are not.
    """
    bad = tensor.numel() - int(torch.isfinite(tensor).sum().item())
    if bad:
        raise JobFailureError(
            Reason.MODEL_NOT_FINITE,
            f"{name} has {bad:,} of {tensor.numel():,} values that are NaN or infinite; magnitudes say nothing then. Send a"
            " model whose weights are finite",
            metadata={"tensor": name},
        )


def seed_of(name: str, seed: int) -> int:
    """A weight's own seed, so that what is drawn for it does not depend on the other weights."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
