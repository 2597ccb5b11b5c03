"""Reads the serialized source of a TorchScript archive with `ast`: what is defined, never what it does.

TorchScript's own source is valid Python syntax, so the parser that is tried most serves here too.
"""

from __future__ import annotations

import ast
import re

from pruning_server.archive.refusals import Refusals, shown

_CLASS_PREFIX = "__torch__"
# Cheap first look; what it finds is confirmed in the syntax tree, so that a string in a model cannot trip it.
_SUSPECT = re.compile(rb"\bquantized\b|\btorch\.classes\b")


def source_record(qualified_class: str) -> str:
    """The record, below the root folder, that defines a class: `__torch__.a.b.C` is in `code/__torch__/a/b.py`."""
    module = qualified_class.rpartition(".")[0]
    return f"code/{module.replace('.', '/')}.py"


def is_script_class(qualified_class: str) -> bool:
    """Whether the name is that of a class that an archive can define itself."""
    return qualified_class.startswith(f"{_CLASS_PREFIX}.")


def read_methods(source: bytes, class_name: str, refusals: Refusals, record: str) -> tuple[str, ...] | None:
    """Returns the names of a class's methods in their order, None if the source does not define the class.

    Raises:
        InvalidArtifactError: the source cannot be parsed, or is nested too deeply.
    """
    for node in _parse(source, refusals, record).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return tuple(item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return None


def find_unsupported(source: bytes, refusals: Refusals, record: str) -> str | None:
    """Returns the dotted name of the first quantized operation or custom class that the source uses, None if none.

    Raises:
        InvalidArtifactError: the source cannot be parsed, or is nested too deeply.
    """
    if not _SUSPECT.search(source):
        return None
    for node in ast.walk(_parse(source, refusals, record)):
        if isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name.startswith(("ops.quantized.", "__torch__.torch.classes.")):
                return name
    return None


def _parse(source: bytes, refusals: Refusals, record: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise refusals.is_corrupt(f"the source {shown(record)} is not TorchScript ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise refusals.is_refused(f"the source {shown(record)} is nested too deeply to be read") from error


def _dotted(node: ast.Attribute) -> str:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    parts.append(inner.id if isinstance(inner, ast.Name) else "")
    return ".".join(reversed(parts))
