"""Whether kernels are better stored channels last.

CPU kernels of convolutions for the usual layout work on blocks of 8 or 16 channels: each call copies its input into blocks,
fills the last one up, and copies the output back. Those for channels last need no copies and take input widths as they are.
"""

from __future__ import annotations

import torch

from pruning_server.graph import ir
from pruning_server.graph.coupling.leaves import enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.slots import find_places

_OVER_IMAGES = 4


def prefers_channels_last(module: torch.jit.ScriptModule) -> bool:
    """Whether the model convolves with kernels over images, in float32 throughout."""
    methods = compile_methods(module).values()
    if not any("conv" in node.kind() for method in methods for node in ir.walk(method.graph)):
        return False
    stored = [slot.tensor for slot in find_places(module).slots.values()]
    tensors = (*stored, *(baked.tensor for baked in enumerate_constants(methods)))
    kernels = [one for one in tensors if one.dim() == _OVER_IMAGES]
    return bool(kernels) and all(one.dtype == torch.float32 for one in kernels)
