"""Names of the tensors in a frozen archive's code."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.graph.coupling.leaves import constant_name, enumerate_constants
from pruning_server.graph.execution import compile_methods
from pruning_server.graph.thawing import name_constants


def thawed_names(module: torch.jit.ScriptModule) -> Mapping[str, str]:
    """The attribute that `thaw` makes of each `constant N`; constants that it leaves alone are not listed."""
    name_of = name_constants(module)
    found = {}
    for number, baked in enumerate(enumerate_constants(compile_methods(module).values())):
        name = name_of(baked.tensor)
        if name is not None:
            found[constant_name(number)] = name
    return found
