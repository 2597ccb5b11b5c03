"""Ops of the language itself on lists, dicts and tuples: run in Python, so that containers keep their identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pruning_server.graph import ir
from pruning_server.graph.domain import UNSET

Native: TypeAlias = Callable[[Any, list[Any]], list[Any]]


def _append(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].append(args[1])
    return [args[0]]


def _extend(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].extend(list(args[1]))
    return [args[0]]


def _insert(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].insert(args[1], args[2])
    return []


def _pop(_: ir.Node, args: list[Any]) -> list[Any]:
    return [args[0].pop(*args[1:])]


def _clear(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].clear()
    return []


def _reverse(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].reverse()
    return []


def _remove(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].remove(args[1])
    return []


def _sort(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].sort(reverse=bool(args[1]) if len(args) > 1 else False)
    return []


def _set_item(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0][args[1]] = args[2]
    return [args[0]]


def _delete(_: ir.Node, args: list[Any]) -> list[Any]:
    del args[0][args[1]]
    return []


def _update(_: ir.Node, args: list[Any]) -> list[Any]:
    args[0].update(args[1])
    return []


def _set_default(_: ir.Node, args: list[Any]) -> list[Any]:
    return [args[0].setdefault(args[1], args[2])]


def _slice(_: ir.Node, args: list[Any]) -> list[Any]:
    start, end, step = (*args[1:4], *(None, None, None))[:3]
    return [args[0][start:end:step]]


def _get(_: ir.Node, args: list[Any]) -> list[Any]:
    return [args[0].get(*args[1:])]


def _tuple_slice(node: ir.Node, args: list[Any]) -> list[Any]:
    start, end = ir.slice_bounds(node)
    return [args[0][start:end]]


def _dict_construct(_: ir.Node, args: list[Any]) -> list[Any]:
    return [dict(zip(args[::2], args[1::2], strict=True))]


def _contains(_: ir.Node, args: list[Any]) -> list[Any]:
    return [args[1] in args[0]]


def _format(_: ir.Node, args: list[Any]) -> list[Any]:
    return [str(args[0]).format(*args[1:])]


STRUCTURE: Mapping[str, Native] = {
    "prim::ListConstruct": lambda _, args: [list(args)],
    "prim::TupleConstruct": lambda _, args: [tuple(args)],
    "prim::DictConstruct": _dict_construct,
    "prim::ListUnpack": lambda _, args: list(args[0]),
    "prim::TupleUnpack": lambda _, args: list(args[0]),
    "prim::TupleIndex": lambda _, args: [args[0][args[1]]],
    "prim::TupleSlice": _tuple_slice,
    "prim::unchecked_cast": lambda _, args: [args[0]],
    "prim::unchecked_unwrap_optional": lambda _, args: [args[0]],
    "aten::_unwrap_optional": lambda _, args: [args[0]],
    "prim::Uninitialized": lambda _, __: [UNSET],
    "aten::format": _format,
    "prim::Print": lambda _, __: [],
    "aten::warn": lambda _, __: [],
    "prim::Drop": lambda _, __: [],
    "prim::RecordFunction": lambda _, __: [],
}
"""Parts of the language, whatever their arguments are."""

ON_CONTAINERS: Mapping[str, Native] = {
    "aten::__getitem__": lambda _, args: [args[0][args[1]]],
    "aten::select": lambda _, args: [args[0][args[1]]],
    "aten::len": lambda _, args: [len(args[0])],
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::insert": _insert,
    "aten::pop": _pop,
    "aten::popitem": lambda _, args: [args[0].popitem()],
    "aten::clear": _clear,
    "aten::reverse": _reverse,
    "aten::remove": _remove,
    "aten::sort": _sort,
    "aten::_set_item": _set_item,
    "aten::Delete": _delete,
    "aten::update": _update,
    "aten::setdefault": _set_default,
    "aten::get": _get,
    "aten::slice": _slice,
    "aten::add": lambda _, args: [args[0] + args[1]],
    "aten::add_": _extend,
    "aten::mul": lambda _, args: [args[0] * args[1]],
    "aten::copy": lambda _, args: [args[0].copy()],
    "aten::list": lambda _, args: [list(args[0])],
    "aten::dict": lambda _, args: [dict(args[0])],
    "aten::keys": lambda _, args: [list(args[0].keys())],
    "aten::values": lambda _, args: [list(args[0].values())],
    "aten::items": lambda _, args: [list(args[0].items())],
    "aten::__contains__": _contains,
}
"""Ops whose first argument is statically a list, dict or tuple; the same names on tensors and strings are ordinary ops."""


_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "IntType": (int,),
    "FloatType": (float,),
    "BoolType": (bool,),
    "ComplexType": (complex,),
    "NumberType": (int, float, complex),
    "StringType": (str,),
    "NoneType": (type(None),),
    "ListType": (list,),
    "TupleType": (tuple,),
    "DictType": (dict,),
}


def is_instance(value: object, kinds: tuple[str, ...], tensor_type: type) -> bool:
    """Whether a value is of one of the kinds of types; elements of containers are not looked at."""
    if "AnyType" in kinds:
        return True
    if isinstance(value, bool):
        return "BoolType" in kinds
    allowed = [one for kind in kinds for one in _PYTHON_TYPES.get(kind, ())]
    if "TensorType" in kinds:
        allowed.append(tensor_type)
    return isinstance(value, tuple(allowed))
