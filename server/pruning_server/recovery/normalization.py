"""Normalization re-estimation: running statistics of the pruned model, measured on fit without labels or gradients.

Source: Li, Wu, Su and Wang, 2020, arXiv 2007.02491 (EagleEye: adaptive batch normalization).
"""

from __future__ import annotations

import numpy as np
import torch

from pruning_server.recovery.ports import FitData, Student
from pruning_server.recovery.schedule import batches

# With the usual momentum of 0.1, what the statistics were before weighs 0.9 to this power afterwards.
PASSES = 60


def reestimate(student: Student, data: FitData, batch_size: int, seed: int) -> bool:
    """Runs fit through the student in training mode until its running statistics have forgotten the old weights.

    Returns:
        Whether anything changed; a model without running statistics is left after one pass.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    before = [tensor.detach().clone() for tensor in student.statistics]
    if not before:
        return False
    student.train()
    done = 0
    with torch.no_grad():
        while done < PASSES:
            started = done
            for passes in batches(data.samples, batch_size, student.exact_batch, generator):
                for rows in passes:
                    with student.keeping_state():
                        student.forward(data.batch(rows).inputs)
                    done += 1
                if done >= PASSES:
                    break
            if done == started:
                break
            if all(torch.equal(old, new) for old, new in zip(before, student.statistics, strict=True)):
                break
    student.eval()
    return any(not torch.equal(old, new) for old, new in zip(before, student.statistics, strict=True))
