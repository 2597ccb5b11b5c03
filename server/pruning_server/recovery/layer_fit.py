"""One layer's least squares: which rows it is fitted on, and the change of its kernel that they call for."""

from __future__ import annotations

import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.recovery.chain_ends import Pair, Sampler
from pruning_server.recovery.linear_ops import grouped, kernel_rows, to_kernel, ungrouped
from pruning_server.recovery.ridge import Ridge

RECTIFIED_ROUNDS = 3
# How strongly the target of a rectified value keeps near to what the layer gives at present.
RECTIFIED_DAMPING = 0.3
SMALLEST_SCALE = 1e-4
OTHER_PLACES = "it runs at other places than in the original"
NO_SOLUTION = "its least squares have no finite solution"


def target_of(pair: Pair, sampler: Sampler, call: LinearCall) -> torch.Tensor | None:
    """The original's rows for what is left of the call's output; None where the two run at different places."""
    target, positions = sampler.targets.pop(call.weight), sampler.positions[call.weight]
    kept = pair.kept_outputs.get((call.weight, call.out_axis))
    if kept is not None:
        target = target[:, torch.as_tensor(kept, device=target.device)]
    matches = target.shape[1] == call.kernel.shape[call.out_axis] and call.positions() > int(positions[-1])
    return target if matches else None


def kept_features(pair: Pair, call: LinearCall) -> torch.Tensor | None:
    """[groups, features, out of the group], False where single weights are pruned; None where none are."""
    removed = pair.removed.get(call.weight)
    return None if removed is None else grouped(kernel_rows(~removed.to(call.kernel.device), call), call.groups)


def solve_layer(
    call: LinearCall, ridge: Ridge, target: torch.Tensor, present: torch.Tensor, scale: torch.Tensor, rounds: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The changes of a kernel, in its shape, and of its constant [out]; None where they are not finite.

    Args:
        call: for the kernel's layout.
        ridge: the design of the rows.
        target: [rows, out], what is wanted at the end of the chain; `present`: what is there.
        present: see there.
        scale: [out], by which the op's result arrives there.
        rounds: how often to solve again for what a rectifier would let through.
    """
    usable = scale.abs() > SMALLEST_SCALE
    kernel, shift = torch.zeros_like(call.kernel, dtype=present.dtype), torch.zeros_like(present[0])
    for number in range(1 + rounds):
        aim = _behind_rectifier(target, present) if number else target
        wanted = torch.where(usable, (aim - present) / torch.where(usable, scale, 1.0), 0.0)
        change = ridge.solve(grouped(wanted, call.groups))
        kernel, shift = kernel + to_kernel(change.kernel, call), shift + change.intercept.flatten()
        present = present + ungrouped(ridge.result(change)) * scale
    finite = bool(torch.isfinite(kernel).all() & torch.isfinite(shift).all())
    return (kernel, shift) if finite else None


def _behind_rectifier(target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """What to aim at where only the positive part counts; near to the present, as the equations are linear.

    Minimizes (relu(target) - relu(z))^2 + damping * (z - present)^2 over z.
    """
    passed = target.clamp_min(0)
    positive = ((passed + RECTIFIED_DAMPING * present) / (1 + RECTIFIED_DAMPING)).clamp_min(0)
    negative = present.clamp_max(0)
    cost_positive = (passed - positive).square() + RECTIFIED_DAMPING * (positive - present).square()
    cost_negative = passed.square() + RECTIFIED_DAMPING * (negative - present).square()
    return torch.where(cost_positive < cost_negative, positive, negative)
