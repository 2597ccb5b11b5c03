"""Reads the serialized source of a TorchScript archive with `ast`: what is defined, never what it does.

TorchScript's own source is valid Python syntax, so the parser that is tried most serves here too.
"""

from __future__ import annotations

import ast

_CLASS_PREFIX = "__torch__"


def source_record(qualified_class: str) -> str:
    """The record, below the root folder, that defines a class: `__torch__.a.b.C` is in `code/__torch__/a/b.py`."""
    module = qualified_class.rpartition(".")[0]
    return f"code/{module.replace('.', '/')}.py"


def is_script_class(qualified_class: str) -> bool:
    """Whether the name is that of a class that an archive can define itself."""
    return qualified_class.startswith(f"{_CLASS_PREFIX}.")


def read_methods(tree: ast.Module, class_name: str) -> tuple[str, ...] | None:
    """Returns the names of a class's methods in their order, None if the source does not define the class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return tuple(item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return None


def find_unsupported(tree: ast.Module) -> str | None:
    """Returns the dotted name of the first quantized operation or custom class that the source uses, None if none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name.startswith(("ops.quantized.", "__torch__.torch.classes.")):
                return name
    return None


def _dotted(node: ast.Attribute) -> str:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    parts.append(inner.id if isinstance(inner, ast.Name) else "")
    return ".".join(reversed(parts))
