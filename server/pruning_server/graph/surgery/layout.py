"""Whether kernels of odd widths are better stored channels last.

CPU kernels for the usual layout work on blocks of 8 or 16 channels and fill the last block up; those for channels last
take any width as it is. A net whose widths were round loses much of what it gains by pruning without this.
"""

from __future__ import annotations

import torch

from pruning_server.graph import ir
from pruning_server.graph.coupling.leaves import enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.slots import find_places

# A vector of 512 bits.
_BLOCK = 16
_PLAIN = frozenset({"aten::conv2d", "aten::_convolution", "aten::convolution"})


def prefers_channels_last(module: torch.jit.ScriptModule) -> bool:
    """Whether all convolutions are plain ones in float32 over images, and some width fills no whole blocks."""
    methods = compile_methods(module).values()
    nodes = [node for method in methods for node in ir.walk(method.graph) if "conv" in node.kind()]
    stored = [slot.tensor for slot in find_places(module).slots.values()]
    kernels = [one for one in (*stored, *(baked.tensor for baked in enumerate_constants(methods))) if one.dim() == 4]
    if not nodes or not all(_is_plain(node) for node in nodes) or any(one.dtype != torch.float32 for one in kernels):
        return False
    return any(kernel.shape[0] % _BLOCK for kernel in kernels)


def _is_plain(node: ir.Node) -> bool:
    """A convolution of images without groups that is not transposed, as far as constants say so."""
    arguments = {one.name: value for one, value in zip(ir.arguments_of(node), node.inputs(), strict=False)}
    groups, transposed = arguments.get("groups"), arguments.get("transposed")
    return (
        node.kind() in _PLAIN
        and groups is not None
        and ir.constant_of(groups) == (True, 1)
        and (transposed is None or ir.constant_of(transposed) == (True, False))
    )
