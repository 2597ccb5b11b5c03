"""The second look at what a model can run: the operators that torch made of its source, after loading and before any run.

The gate reads names (`archive/source_rules.py`); here stands what torch resolved them to.
"""

from __future__ import annotations

import torch

from pruning_server.archive.operators import PRIM_OPERATORS, TORCH_OPERATORS
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.kinds import kinds_used

# What the language itself is made of.
_LANGUAGE = frozenset(
    [
        "CallFunction",
        "CallMethod",
        "Constant",
        "CreateObject",
        "DictConstruct",
        "Enter",
        "Print",
        "Exit",
        "GetAttr",
        "If",
        "Load",
        "ListConstruct",
        "ListUnpack",
        "Loop",
        "SetAttr",
        "Store",
        "TupleConstruct",
        "TupleIndex",
        "TupleSlice",
        "TupleUnpack",
        "Uninitialized",
        "HasAttr",
        "isinstance",
        "profile",
        "tolist",
        "unchecked_cast",
        "unchecked_unwrap_optional",
        "annotate",
        "ConstantChunk",
        "Return",
        "RaiseException",
        "LegacyTypedConstructor",
        "Function",
        "LocalContext",
    ]
)
_KNOWN = {"aten": TORCH_OPERATORS, "prim": PRIM_OPERATORS | _LANGUAGE}


def require_permitted(module: torch.jit.ScriptModule, what: str) -> None:
    """Refuses a module whose methods can run an operator that is not in the allowlist.

    Args:
        module: as it was loaded; nothing of it is run.
        what: it is, for the message.

    Raises:
        JobFailureError: MODEL_REFUSED, naming the operator.
    """
    for kind, place in sorted(kinds_used(module).items()):
        namespace, _, name = kind.partition("::")
        if name not in _KNOWN.get(namespace, frozenset()):
            where = f" ({place})" if place else ""
            text = (
                f"The {what} uses the operator {kind}, which is not on the list of those that this service runs{where}; "
                "save the model without it."
            )
            raise JobFailureError(Reason.MODEL_REFUSED, text, metadata={"operator": kind})
