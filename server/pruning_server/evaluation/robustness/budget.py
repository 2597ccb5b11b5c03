"""How much is run: bounded by the cost of a model, and the same for the same job, as nothing here looks at a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAX_SAMPLES = 1000
# Passes over the samples of each model, beside the one over unchanged inputs.
MAX_PASSES = 20
# Multiply-accumulates of both models together: an eighth of what fine-tuning may take, a minute or two on two CPU cores.
MACS_BUDGET = {"cpu": 3e12, "cuda": 3e14}
# Who sends many samples of a large model has accepted to wait for passes over all of them; this many may be added.
VALIDATION_PASSES = 4
# Where what a sample costs is not known.
UNKNOWN_COST_SAMPLES = 256
# Models that take one batch size alone, often 1, are slow for what they compute.
MAX_EXACT_CALLS = 256
# Of both models' outputs at one level.
OUTPUT_BYTES = 1 << 28
LEAST_SAMPLES = 2


@dataclass(frozen=True)
class Budget:
    """What is affordable: `samples` of the report split, and `positions` of each occluded part."""

    samples: int
    positions: int


def plan_budget(
    levels_by_name: Mapping[str, int],
    *,
    report_samples: int,
    validation_samples: int,
    macs: int | None,
    device_type: str,
    exact_batch: int | None,
    output_bytes: int,
) -> Budget:
    """Shares the passes out: every level of every curve once, what is left to more positions of occlusion.

    Args:
        levels_by_name: of each curve, without level 0; `occlusion` among them.
        report_samples: samples of the report split.
        validation_samples: samples of the whole set.
        macs: of one sample; None: not known.
        device_type: `cpu` or `cuda`.
        exact_batch: the only batch size that the model takes.
        output_bytes: of one sample's output, in float32.
    """
    others = sum(count for name, count in levels_by_name.items() if name != "occlusion")
    occluded = levels_by_name.get("occlusion", 0)
    positions = max(1, (MAX_PASSES - others) // occluded) if occluded else 0
    passes = 1 + others + occluded * positions
    samples = min(report_samples, MAX_SAMPLES, OUTPUT_BYTES // max(1, 2 * output_bytes))
    if macs is None:
        samples = min(samples, UNKNOWN_COST_SAMPLES)
    elif macs > 0:
        budget = max(MACS_BUDGET.get(device_type, MACS_BUDGET["cpu"]), VALIDATION_PASSES * macs * validation_samples)
        samples = min(samples, int(budget / (2 * passes * macs)))
    if exact_batch is not None:
        samples = min(samples, MAX_EXACT_CALLS * exact_batch)
    return Budget(samples=max(samples, min(LEAST_SAMPLES, report_samples)), positions=positions)
