"""What the source of an archive may be made of: the statements that TorchScript writes, and operators of an allowlist.

The archive's source is a program. torch would compile all of it, and run some of it (`__setstate__`) while loading. Here
every file is parsed without running anything, and whatever is not known is refused by name: operators are called where
they stand and nowhere else, so that none can be passed on under another name. What a name stands for is not guessed: only
functions of the archive may be called under a name of their own, and classes and functions are those that it defines.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pruning_server.archive.operators import PRIM_OPERATORS, TORCH_OPERATORS
from pruning_server.archive.refusals import Refusals, shown
from pruning_server.errors import InvalidArtifactError

MAX_DEPTH = 400
"""Of nested expressions; torch's own parser recurses, and ends the process on some thousands."""

# Outside these bytes, Python's and torch's readers of source may see different things.
_FOREIGN_BYTES = re.compile(rb"[^\x20-\x7e\n]")
_NODES = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AnnAssign,
    ast.AugAssign, ast.Expr, ast.Pass, ast.If, ast.For, ast.While, ast.With, ast.withitem, ast.Assert, ast.Break,
    ast.Continue, ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Dict,
    ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Starred,
    ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_SPACES = {"torch": TORCH_OPERATORS, "ops.aten": TORCH_OPERATORS, "ops.prim": PRIM_OPERATORS}
_ROOTS = frozenset({"torch", "ops"})
_CLASSES = "__torch__"
"""Where the classes and functions of the archive are; torch's own, of C++, are in it too."""

_BUILTINS = frozenset(
    [
        "annotate",
        "bool",
        "complex",
        "device",
        "dict",
        "enumerate",
        "float",
        "getattr",
        "hasattr",
        "inf",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "print",  # goes to a log of 64 KiB
        "range",
        "reversed",
        "str",
        "sum",
        "tuple",
        "unchecked_cast",
        "uninitialized",
        "zip",
    ]
)
_NEVER_A_FUNCTION = frozenset({"print", "fork", "awaitable"})
"""What torch runs under these names, whatever stands for them further down."""

_MADE_BY_TORCH = frozenset({"__new__"})
"""Methods that every class has."""

_RUN_WHILE_LOADING = frozenset({"__setstate__", "__getstate__"})
_NAMESPACED = 3
"""Parts of the name of an operator that is not torch's own: ops, its library, its name."""


@dataclass(frozen=True)
class Source:
    """One parsed file of the archive."""

    record: str
    tree: ast.Module


def parse(data: bytes, record: str, refusals: Refusals) -> Source:
    """Parses a file of source.

    Raises:
        InvalidArtifactError: it is no TorchScript, or nested too deeply.
    """
    if (found := _FOREIGN_BYTES.search(data)) is not None:
        byte = found.group()[0]
        raise refusals.is_corrupt(f"the source {shown(record)} is not TorchScript: the byte {byte:#04x} is not in any")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Comments on types are read by torch, and are nothing to Python unless it is asked.
            tree = ast.parse(data, type_comments=True)
    except (SyntaxError, ValueError) as error:
        raise refusals.is_corrupt(f"the source {shown(record)} is not TorchScript ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise refusals.is_refused(f"the source {shown(record)} is nested too deeply to be read") from error
    if _depth(tree) > MAX_DEPTH:
        raise refusals.is_refused(
            f"the source {shown(record)} is nested more than {MAX_DEPTH} deep; split what is nested"
        )
    return Source(record, tree)


def check(sources: tuple[Source, ...], refusals: Refusals) -> None:
    """Refuses what TorchScript does not write, and operators that are not in the allowlist.

    Raises:
        InvalidArtifactError: names the operator or the statement, and where it stands.
    """
    methods = {name for source in sources for name in _defined(source.tree)}
    qualified = frozenset(name for source in sources for name in _qualified(source))
    for name in sorted(_RUN_WHILE_LOADING & methods):
        raise refusals.is_refused(
            f"a class of the model defines {name}, which torch would run while it loads the model; save the model without it"
        )
    for source in sources:
        _Walk(source, refusals, methods, qualified).run()


def _defined(tree: ast.Module) -> Iterator[str]:
    """Functions, methods, and classes, which are called to make a named tuple."""
    return (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))


def _qualified(source: Source) -> Iterator[str]:
    """The dotted names of what a file defines: `code/__torch__/a.py` defines `__torch__.a.C`."""
    module = source.record.removeprefix("code/").removesuffix(".py").replace("/", ".")
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{module}.{node.name}"


@dataclass(frozen=True)
class _Locals:
    """Names of values in a function. `callable`: those that stand for functions of the archive and for nothing else."""

    bound: frozenset[str] = frozenset()
    callable: frozenset[str] = frozenset()


def _locals_of(function: ast.FunctionDef) -> _Locals:
    named: Counter[str] = Counter()
    bound: Counter[str] = Counter()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound[node.id] += 1
        elif isinstance(node, ast.arg):
            bound[node.arg] += 1
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            parts = _dotted(node.value)
            if parts is not None and parts[0] == _CLASSES:
                named[node.targets[0].id] += 1
    aliases = frozenset(name for name, count in named.items() if count == bound[name])
    return _Locals(frozenset(bound), aliases - _NEVER_A_FUNCTION)


def _depth(tree: ast.AST) -> int:
    deepest, waiting = 0, [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        waiting.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return deepest


@dataclass(frozen=True)
class _Walk:
    """One file; `methods`: names that classes of the archive define; `qualified`: dotted names of all its definitions."""

    source: Source
    refusals: Refusals
    methods: set[str]
    qualified: frozenset[str]

    def run(self) -> None:
        waiting: list[tuple[ast.AST, _Locals | None]] = [(self.source.tree, None)]
        while waiting:
            node, names = waiting.pop()
            if not isinstance(node, _NODES):
                raise self._no(node, f"the statement {type(node).__name__}, which torch.jit.save does not write")
            if getattr(node, "type_comment", None) is not None:
                raise self._no(node, "a type in a comment, which torch.jit.save does not write")
            if isinstance(node, ast.FunctionDef):
                if names is not None:
                    raise self._no(
                        node, f"the function {shown(node.name)} inside of another one, which is not run here"
                    )
                names = _locals_of(node)
            waiting.extend((child, names) for child in self._below(node, names or _Locals()))

    def _below(self, node: ast.AST, names: _Locals) -> Iterator[ast.AST]:
        """What is still to be looked at."""
        if isinstance(node, ast.Call):
            if self._is_called_by_name(node.func, names):
                yield from (*node.args, *node.keywords)
                return
        elif isinstance(node, ast.Attribute) and (name := _dotted(node)) is not None:
            self._check_attribute(node, name)
            return
        elif isinstance(node, ast.ClassDef):
            # Names of attributes, which may be any.
            for item in node.body:
                yield from (item.annotation,) if isinstance(item, ast.AnnAssign) and item.value is None else (item,)
            yield from (*node.bases, *node.keywords, *node.decorator_list)
            return
        elif _names_a_root(node):
            raise self._no(node, "the name torch, ops or __torch__ for something else than an operator or a class")
        yield from ast.iter_child_nodes(node)

    def _check_attribute(self, node: ast.Attribute, name: tuple[str, ...]) -> None:
        """Of torch nothing is taken that is not called, and of the archive's classes only those that it defines."""
        text = ".".join(name)
        if name[0] in _ROOTS:
            raise self._no(node, f"{text}, which it does not call")
        if name[0] == _CLASSES and not any(".".join(name[:end]) in self.qualified for end in range(2, len(name) + 1)):
            raise self._no(node, f"{shown(text)}, which the archive does not define")

    def _is_called_by_name(self, called: ast.expr, names: _Locals) -> bool:
        """Whether this names an operator or a function; what names no operator, no function and no method is refused."""
        if isinstance(called, ast.Name):
            if called.id in names.callable or (called.id in _BUILTINS and called.id not in names.bound):
                return True
            raise self._no(called, f"the function {called.id}, which this service does not run; remove it")
        if not isinstance(called, ast.Attribute):
            raise self._no(
                called, f"a call of a {type(called).__name__}, which has no name; torch.jit.save does not write that"
            )
        name = _dotted(called)
        if name is None or name[0] not in _ROOTS:
            if called.attr not in self.methods and called.attr not in TORCH_OPERATORS | _MADE_BY_TORCH:
                raise self._no(called, f"the method {shown(called.attr)}, which no class of the model defines")
            return False
        self._look_up(called, name)
        return True

    def _look_up(self, called: ast.Attribute, name: tuple[str, ...]) -> None:
        known = _SPACES.get(".".join(name[:-1]))
        if known is not None and name[-1] in known:
            return
        text = ".".join(name)
        if known is None and name[0] == "ops" and len(name) == _NAMESPACED:
            raise self._no(
                called, f"{shown(text)}, an operator of the library {shown(name[1])}, which is not known here"
            )
        raise self._no(called, f"the operator {shown(text)}, which is not on the list of those that this service runs")

    def _no(self, node: ast.AST, what: str) -> InvalidArtifactError:
        place = f"{shown(self.source.record)}, line {getattr(node, 'lineno', 1)}"
        return self.refusals.is_refused(f"the model uses {what} ({place})")


def _names_a_root(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg | ast.keyword) else None
    return name == _CLASSES or name in _ROOTS


def _dotted(node: ast.expr) -> tuple[str, ...] | None:
    """The parts of `a.b.c`; None where it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return (node.id, *reversed(parts))
