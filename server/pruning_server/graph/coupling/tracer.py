"""Runs methods with labels on every axis: what meets is united, what cannot be followed is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pruning_server.graph import ir
from pruning_server.graph.channels import Cause, Channels
from pruning_server.graph.coupling import op_sets
from pruning_server.graph.coupling.calls import Call
from pruning_server.graph.coupling.leaves import Leaves, enumerate_constants
from pruning_server.graph.coupling.record import Pin, Visit, holds_tensor, seen_of
from pruning_server.graph.coupling.registry import Registry
from pruning_server.graph.coupling.rules import REGISTRY
from pruning_server.graph.coupling.values import (
    Labelled,
    LabelledInt,
    SettableInt,
    is_settable,
    sizes_in,
    tensors_in,
    unlabel,
)
from pruning_server.graph.coupling.zeros import bends, keeps_zeros, shifted_maps
from pruning_server.graph.domain import UNSET, Domain, call_operator
from pruning_server.graph.execution import Executor, compile_methods
from pruning_server.graph.head_choices import HeadChoices
from pruning_server.graph.liveness import Liveness
from pruning_server.graph.program import Method, Program, Step, all_steps
from pruning_server.graph.slots import Path, find_places
from pruning_server.graph.state import StateGuard

_SPLIT_REASON = "channels that are split into a block must leave a block"


class Tracer(Domain):
    """Labels one module over as many runs of as many methods as there are samples for.

    Args:
        module: run under a guard, so that its state stays as it is.
        methods: compiled methods by name; by default private copies of all graphs.
        registry: the rules.
        head_dims: attention may lose dimensions inside heads, the same in every head, where that leaves more to choose
            from than whole heads; else only whole heads go.
        whole_heads: `id` of nodes that contract heads of which only whole ones may go all the same.
    """

    explores = True

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        methods: Mapping[str, Method] | None = None,
        registry: Registry = REGISTRY,
        *,
        head_dims: bool = False,
        whole_heads: Iterable[int] = (),
    ) -> None:
        places = find_places(module)
        self.channels = Channels()
        if head_dims:
            self.channels.choices = HeadChoices(self.channels, whole_heads)
        self._methods = compile_methods(module) if methods is None else methods
        self.leaves = Leaves(places, enumerate_constants(self._methods.values()), self.channels)
        self.visits: list[Visit] = []
        self.pins: list[Pin] = []
        self.failed_rules: list[str] = []
        self._settable = frozenset(name for method in self._methods.values() for name in method.settable)
        self._changing = self._settable.union(*(_written_names(method) for method in self._methods.values()))
        self._registry = registry
        self._guard = StateGuard(module)
        self._executor = Executor(module, self, places, self._settable)
        self._liveness = {
            id(step): liveness
            for method in self._methods.values()
            for liveness in [Liveness(method.program)]
            for step in all_steps(method.program)
        }
        self._paths = {key: path for method in self._methods.values() for key, path in _stored_paths(method)}

    def trace(self, name: str, inputs: Sequence[object]) -> Any:
        """Runs a method on one sample and returns its plain output; raises as `Executor.run` does."""
        with self._guard, torch.no_grad():
            output = self._executor.run(self._methods[name], name, [_wrapped(value) for value in inputs])
        cause = Cause("prim::Return", "", "it is an output of the model")
        self._freeze(output, cause)
        self._freeze_sizes(output, cause)
        return unlabel(output)

    def freeze_method(self, name: str, cause: Cause) -> None:
        """Keeps everything that a method may use as it is, because it cannot be run."""
        program = self._methods[name].program
        for inner in all_steps(program):
            if id(inner) in self._paths:
                for leaf in self.leaves.under(self._paths[id(inner)]):
                    self.leaves.freeze(leaf, cause)

    def finish(self) -> None:
        """Decides what was left open and freezes what no run has used; call once, after the last run."""
        self.leaves.freeze_unread()
        self.channels.settle(Cause("aten::view", "", _SPLIT_REASON))
        self.leaves.freeze_indivisible()
        self.channels.seal()
        self.channels.freeze_bent()
        self.channels.switch_off_at_producers()

    # --- Values -------------------------------------------------------------------------------------------------------

    def constant(self, step: Step, value: Any) -> Any:
        """Floating-point tensors in the code are stored tensors too."""
        if isinstance(value, torch.Tensor):
            return self.leaves.constant(step.node, value)
        return [self.constant(step, one) for one in value] if isinstance(value, list) else value

    def attribute(self, step: Step, path: Path, value: Any) -> Any:
        """Every stored tensor carries the elements of its memory."""
        if isinstance(value, torch.Tensor):
            read = self.leaves.read(path, value)
            if path[-1] not in self._changing:
                return read
            self._mark_mixed([read])
            return replace(read, stored=read.stored and bool(read.maps))
        if isinstance(value, list | tuple):
            entries = [self.attribute(step, (*path, str(number)), one) for number, one in enumerate(value)]
            return entries if isinstance(value, list) else tuple(entries)
        if isinstance(value, dict):
            return {key: self.attribute(step, (*path, str(key)), one) for key, one in value.items()}
        return SettableInt(value) if type(value) is int and path[-1] in self._settable else value

    def assign(self, step: Step, path: Path, value: Any) -> Any:
        """A state's channels go with those of what replaces it."""
        held = self.leaves.under(path)
        if isinstance(value, Labelled) and len(held) == 1 and held[0].tensor.shape == value.tensor.shape:
            call = self._call(step)
            call.elementwise([Labelled(held[0].tensor, held[0].maps), value], value.shape)
        else:
            cause = self._cause(step, "the model stores it in a state of another shape")
            self._freeze(value, cause)
            self._freeze_sizes(value, cause)
            for leaf in held:
                self.leaves.freeze(leaf, cause)
        return unlabel(value)

    def plain(self, value: Any) -> Any:
        """Without labels."""
        return unlabel(value)

    # --- Ops ----------------------------------------------------------------------------------------------------------

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs an op on plain values and lets its rule label the results."""
        self._pin_sizes(step, inputs)
        inputs = list(inputs)
        plain = [unlabel(value) for value in inputs]
        seen = [seen_of(value) for value in inputs]
        results = call_operator(step, _runnable(step.op, plain) if self.exploring else plain)
        labelled = [value for value in tensors_in(list(inputs)) if value.maps]
        settable = is_settable(inputs)
        if settable and labelled:
            self._freeze(
                labelled, self._cause(step, "it meets a number that depends on an attribute which a method sets")
            )
        nested = any(one.tensor.is_nested for one in tensors_in([*inputs, *_wrapped(list(results))]))
        unknown = step.op in op_sets.RELAYS or (nested and step.op not in op_sets.ON_NESTED)
        rule = None if unknown else self._registry.find(step.op)
        if rule is None and labelled:
            self._freeze(labelled, self._cause(step, f"channels cannot be followed through {step.op}"))
        if rule is None or not (labelled or any(isinstance(one, torch.Tensor) for one in results)):
            values = [_settable(result) if settable else _wrapped(result) for result in results]
            self._visit(step, seen, values)
            return values
        names = [argument.name for argument in ir.arguments_of(step.node)]
        call = self._call(
            step,
            dict(zip(names, inputs, strict=False)),
            results,
            lambda first: call_operator(step, [first, *plain[1:]]),
        )
        try:
            values = [_wrapped(value) for value in rule(call)]
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # An unforeseen form of an op must not fail the model: it is treated like an op without a rule.
            self.failed_rules.append(f"{step.op}: {type(error).__name__}: {error}")
            self._freeze(labelled, self._cause(step, f"this form of {step.op} cannot be followed"))
            values = [_wrapped(result) for result in results]
        values = self._written(call, step, inputs, values)
        if len(labelled) > 1 and all(value.stored for value in labelled) and step.op not in op_sets.NORMED:
            self._pair(labelled, values)
        if labelled and not keeps_zeros(step.op, inputs):
            self._shift(step, labelled)
        elif isinstance(values[0], Labelled):
            for one in shifted_maps(step.op, call.arguments, values[0]):
                self.channels.mark_shifted(one.ids)
        if labelled and step.op not in op_sets.SELECTING:
            if step.op in op_sets.COUNTED:
                self.channels.mark_counted([one.ids for value in labelled for one in value.maps])
            # What a stored kernel of zeros makes of foreign values is zero.
            self._mix([one for one in labelled if bends(step.op) or not one.stored], list(tensors_in(inputs)))
        self._visit(step, seen, values)
        return values

    def touch(self, step: Step, inputs: Sequence[Any]) -> None:
        """A size that counts or picks elements of a list, or is a key, keeps its value."""
        if step.op in op_sets.COUNTING:
            self._pin_sizes(step, [None, *inputs[1 : 2 if step.op in op_sets.STORING else None]])
        elif step.op in op_sets.READING:
            self._pin_sizes(step, inputs)
        elif step.op == "prim::DictConstruct":
            self._pin_sizes(step, [None if number % 2 else value for number, value in enumerate(inputs)])
        elif step.op in op_sets.ORDERING:
            self._freeze_sizes(list(inputs), self._cause(step, "the sizes in a list are compared"))

    def control(self, step: Step, position: int, value: Any) -> Any:
        """Control flow must not change with the channels."""
        self._freeze(value, self._cause(step, "its elements become numbers"))
        if isinstance(value, LabelledInt):
            self.pins.append(Pin(step.node, position, None, 0, value))
        return value

    def repeat(self, step: Step, before: Sequence[Any], after: Sequence[Any]) -> None:
        """Another number of rounds must give the same channels."""
        self._together(step, before, after, "its layout changes from round to round of a loop")

    def merge(self, step: Step, taken: Sequence[Any], other: Sequence[Any]) -> None:
        """Both branches must give the same channels, since either may be taken after some are removed."""
        self._together(step, taken, other, "two branches give it different layouts")

    def skip(self, step: Step, block: Program, captured: Sequence[Any], results: Sequence[Any]) -> None:
        """A branch that was not taken may need everything that it reads as it is."""
        cause = self._cause(step, "a branch that the samples did not take uses it")
        self._freeze([*captured, *results], cause)
        for inner in all_steps(block):
            for leaf in self.leaves.under(self._paths[id(inner)]) if id(inner) in self._paths else ():
                self.leaves.freeze(leaf, cause)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _call(
        self,
        step: Step,
        arguments: Mapping[str, Any] | None = None,
        results: Sequence[Any] = (),
        rerun: Any = None,
    ) -> Call:
        liveness = self._liveness.get(id(step))
        unused = liveness.unused(step) if liveness is not None else frozenset()
        return Call(step.op, ir.source_of(step.node), arguments or {}, results, self.channels, rerun, step.node, unused)

    def _together(self, step: Step, ones: Sequence[Any], others: Sequence[Any], reason: str) -> None:
        for one, other in zip(ones, others, strict=True):
            if one is not other:
                self._mark_mixed(tensors_in([one, other]))
            shapes = _common_shapes(one, other)
            if shapes is not None:
                self._call(step).combine([(one.maps, shapes[0]), (other.maps, shapes[1])], shapes[0])
                if one.stored and other.stored:
                    self._pair([one, other], [one, other])
            elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
                self._together(step, one, other, reason)
            elif other is not None and one is not other and UNSET is not one and UNSET is not other:
                self._freeze([one, other], self._cause(step, reason))

    def _cause(self, step: Step, reason: str) -> Cause:
        return Cause(step.op, ir.source_of(step.node), reason)

    def _freeze_sizes(self, values: Any, cause: Cause) -> None:
        for size in sizes_in(values):
            self.channels.freeze(size.map.ids, cause)

    def _freeze(self, values: Any, cause: Cause) -> None:
        for value in tensors_in(values):
            for one in value.maps:
                self.channels.freeze(one.ids, cause)

    def _pin_sizes(self, step: Step, inputs: Sequence[Any]) -> None:
        if step.op in op_sets.SHAPED:
            return
        for position, value in enumerate(inputs):
            if isinstance(value, LabelledInt):
                self.pins.append(Pin(step.node, position, None, 0, value))
            elif isinstance(value, list | tuple):
                self.pins += [
                    Pin(step.node, position, element, len(value), size)
                    for element, size in enumerate(value)
                    if isinstance(size, LabelledInt)
                ]

    def _shift(self, step: Step, labelled: Sequence[Labelled]) -> None:
        """Zeros do not pass: the channels cannot be switched off before this op, nor can a stored tensor after it."""
        for value in labelled:
            for one in value.maps:
                self.channels.mark_shifted(one.ids)
                if value.stored and bends(step.op):
                    cause = self._cause(step, "zeros in a stored tensor do not switch it off, because of this op")
                    self.channels.mark_bent(one.ids, cause)

    def _pair(self, labelled: Sequence[Labelled], values: Sequence[Any]) -> None:
        """Stored tensors that make one weight together are switched off together."""
        given = [one.ids for value in labelled for one in value.maps]
        for value in tensors_in(list(values)):
            for one in value.maps:
                self.channels.mark_made_of(one.ids, given)

    def _mix(self, labelled: Sequence[Labelled], operands: Sequence[Labelled]) -> None:
        """A value that is the same for all channels of a sample may differ from sample to sample."""
        if self.varying or any(not value.stored and not value.maps for value in operands):
            self._mark_mixed(labelled)

    def _mark_mixed(self, values: Iterable[Labelled]) -> None:
        for value in values:
            for one in value.maps:
                self.channels.mark_mixed(one.ids)

    def _visit(self, step: Step, seen: Sequence[Any], values: Sequence[Any]) -> None:
        if any(True for one in (*seen, *values) if holds_tensor(one)):
            results = tuple(seen_of(value) for value in values)
            self.visits.append(Visit(step.node, step.op, tuple(seen), results, self.exploring > 0))

    def _written(self, call: Call, step: Step, inputs: Sequence[Any], values: list[Any]) -> list[Any]:
        """A tensor that is changed in place keeps its labels: other views of it know nothing of new ones."""
        for position in step.writes:
            target = inputs[position] if position < len(inputs) else None
            if not isinstance(target, Labelled):
                continue
            for number, value in enumerate(values):
                if isinstance(value, Labelled) and value.tensor is target.tensor:
                    for axis in range(len(value.shape)):
                        if target.map_at(axis) is None:
                            call.hold(value.maps, axis, "it is written into a tensor whose axis always stays")
                    values[number] = target
        return values


def _common_shapes(one: Any, other: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of two tensors of one layout; lengths that differ, as of time, are none of channels' and become 1."""
    if not isinstance(one, Labelled) or not isinstance(other, Labelled) or len(one.shape) != len(other.shape):
        return None
    different = [axis for axis, (left, right) in enumerate(zip(one.shape, other.shape, strict=True)) if left != right]
    if any(value.map_at(axis) is not None for value in (one, other) for axis in different):
        return None
    first, second = ([1 if axis in different else size for axis, size in enumerate(v.shape)] for v in (one, other))
    return tuple(first), tuple(second)


def _runnable(op: str, plain: list[Any]) -> list[Any]:
    """Arguments with which an op of a branch that is only explored runs: fused attention takes one shape for all three."""
    if op != "aten::_native_multi_head_attention":
        return plain
    query, key, value = plain[:3]
    alike = all(isinstance(one, torch.Tensor) and one.dim() == 3 for one in plain[:3])
    fits = alike and query.shape[2] == key.shape[2] == value.shape[2]
    return [query, query, query, *plain[3:]] if fits and not query.is_nested else plain


def _wrapped(value: Any) -> Any:
    """Tensors without labels become values of their own; what is labelled stays."""
    if isinstance(value, torch.Tensor):
        return Labelled(value)
    if isinstance(value, list):
        return [_wrapped(one) for one in value]
    if isinstance(value, tuple):
        return tuple(_wrapped(one) for one in value)
    if isinstance(value, dict):
        return {key: _wrapped(one) for key, one in value.items()}
    return value


def _settable(value: Any) -> Any:
    """Numbers that were computed from a number that a method sets."""
    if isinstance(value, list):
        return [_settable(one) for one in value]
    return SettableInt(value) if type(value) is int else _wrapped(value)


def _stored_paths(method: Method) -> list[tuple[int, Path]]:
    """The attribute path of every step that reads one, found without running."""
    paths: dict[int, Path] = {method.program.inputs[0]: ()}
    found = []
    for step in all_steps(method.program):
        if step.op == "prim::GetAttr" and step.inputs[0] in paths:
            path = (*paths[step.inputs[0]], ir.attribute_name(step.node))
            paths[step.outputs[0]] = path
            found.append((id(step), path))
    return found


def _written_names(method: Method) -> set[str]:
    """Names of stored tensors that a method changes in place, directly or through a slice."""
    names: dict[int, str] = {}
    found = set()
    for step in all_steps(method.program):
        if step.op == "prim::GetAttr":
            names[step.outputs[0]] = ir.attribute_name(step.node)
        elif step.op in {"aten::slice", "aten::select", "aten::detach", "prim::data"} and step.inputs[0] in names:
            names[step.outputs[0]] = names[step.inputs[0]]
        found |= {names[step.inputs[position]] for position in step.writes if step.inputs[position] in names}
    return found
