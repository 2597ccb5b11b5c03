"""Executes the inlined graph of a method node by node, so that every value can be looked at while it exists.

What the executor needs to know of values is little; the rest is the domain's: the plain one computes with tensors, others
let tensors carry more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pruning_server.graph import ir
from pruning_server.graph.domain import (
    UNSET,
    Domain,
    EndlessLoopError,
    Instance,
    ModelRaisedError,
    ModuleRef,
    StoredInstance,
    UnsupportedNodeError,
)
from pruning_server.graph.natives import ON_CONTAINERS, STRUCTURE, is_instance
from pruning_server.graph.program import Method, Program, Step, compile_graph
from pruning_server.graph.slots import Places, find_places

_TRAINING = "training"
_PLAIN = frozenset({type(None), bool, int, float, str})
_MOST_EXPLORED_ROUNDS = 256
_PASSING = frozenset({"prim::unchecked_cast", "prim::unchecked_unwrap_optional", "aten::_unwrap_optional"})


class Executor:
    """Runs methods of one module; what they write to attributes stays written, as in a run of torch's own.

    Args:
        module: wrap runs in a `StateGuard` to leave it as it was.
        domain: the kind of values; plain tensors by default.
        places: of the module, where they are known already.
        settable: attributes that any of the module's methods sets; branches on them may be taken another time.
    """

    def __init__(
        self,
        module: ir.Module,
        domain: Domain | None = None,
        places: Places | None = None,
        settable: frozenset[str] = frozenset(),
    ) -> None:
        self.settable = settable
        # Steps whose other branch has a loop that does not end.
        self.endless: set[int] = set()
        self._places = places or find_places(module)
        self._module = module
        self._domain = domain or Domain()
        self._containers: dict[tuple[int, str], tuple[ir.Module, Any]] = {}
        self._container_changed = False
        self._callees: dict[tuple[int, str], Method] = {}
        self._grad_modes: list[bool] = []

    def run(self, method: Method, name: str, inputs: Sequence[Any]) -> Any:
        """Runs a compiled method of the module on values of the domain; defaults of missing arguments are filled in.

        Raises:
            TypeError: too few arguments.
            ModelRaisedError: the model's code raised.
            UnsupportedNodeError: a node cannot be executed.
            RuntimeError: whatever an op raises.
        """
        arguments = [*inputs, *ir.default_arguments(self._module, len(inputs), name)]
        grad = torch.is_grad_enabled()
        try:
            return self._call(method, [ModuleRef((), self._module), *arguments])
        finally:
            torch.set_grad_enabled(grad)
            self._write_back()
            self._containers.clear()

    def _call(self, method: Method, arguments: Sequence[Any]) -> Any:
        frame = _Frame(self, method, self._domain)
        outputs = frame.call(arguments)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    # --- What a module holds ------------------------------------------------------------------------------------------

    def read(self, step: Step, owner: Any, name: str) -> Any:
        """The value of an attribute."""
        if isinstance(owner, Instance):
            return owner.attributes[name]
        if isinstance(owner, StoredInstance):
            return self._domain.constant(step, owner.follow(step, name))
        if not isinstance(owner, ModuleRef):
            raise UnsupportedNodeError(f"'{name}' is read from an object that cannot be read")
        child = self._places.modules.get((*owner.path, name))
        if child is not None:
            return ModuleRef((*owner.path, name), child)
        key = (ir.identity(owner.module), name)
        if key in self._containers:
            return self._containers[key][1]
        value = ir.read_attribute(owner.module, name)
        if value is ir.OPAQUE:
            return StoredInstance(owner.module, ()).follow(step, name)
        value = self._domain.attribute(step, (*owner.path, name), value)
        if isinstance(value, list | dict):
            self._containers[key] = (owner.module, value)
        return value

    def write(self, step: Step, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute."""
        if isinstance(owner, Instance):
            owner.attributes[name] = value
            return
        if not isinstance(owner, ModuleRef):
            raise UnsupportedNodeError(f"'{name}' of a stored instance of a TorchScript class is set by the code")
        if isinstance(value, list | dict):
            self._containers[ir.identity(owner.module), name] = (owner.module, value)
        else:
            self._containers.pop((ir.identity(owner.module), name), None)
        ir.set_attribute(owner.module, name, self._domain.assign(step, (*owner.path, name), value))

    def note_container_change(self) -> None:
        """Some list or dict, perhaps an attribute's, has changed."""
        self._container_changed = True

    def _write_back(self) -> None:
        """Python holds copies of the lists and dicts in attributes; the module gets what became of them."""
        if self._container_changed:
            for (_, name), (owner, value) in self._containers.items():
                ir.set_attribute(owner, name, self._domain.plain(value))
        self._container_changed = False

    # --- Calls that are not inlined -----------------------------------------------------------------------------------

    def call_method(self, receiver: Any, name: str, arguments: Sequence[Any]) -> Any:
        """A call through an interface: the module that is there at run time answers."""
        if not isinstance(receiver, ModuleRef):
            raise UnsupportedNodeError(f"method '{name}' of an instance of a TorchScript class cannot be called")
        key = (ir.identity(receiver.module), name)
        if key not in self._callees:
            graph = ir.method_graph(receiver.module, name)
            if graph is None:
                raise UnsupportedNodeError(f"method '{name}' was not found")
            self._callees[key] = compile_graph(graph)
        return self._call(self._callees[key], [receiver, *arguments])

    def call_graph(self, node: ir.Node, arguments: Sequence[Any]) -> Any:
        """What a fork runs; here at once."""
        graph = ir.inner_graph(node)
        if graph is None:
            raise UnsupportedNodeError(f"{node.kind()} has no code")
        return self._call(compile_graph(graph), arguments)

    def enter(self, instance: Any) -> None:
        """Begins a `with` block; only `torch.no_grad` is known."""
        if not isinstance(instance, Instance) or not instance.kind.endswith("no_grad"):
            raise UnsupportedNodeError("only `with torch.no_grad():` can be executed; remove other `with` blocks")
        self._grad_modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def leave(self) -> None:
        """Ends a `with` block."""
        torch.set_grad_enabled(self._grad_modes.pop())


class _Frame:
    """One call of one method: its values, and which of them are the same in every run of the module."""

    def __init__(self, executor: Executor, method: Method, domain: Domain) -> None:
        self._executor = executor
        self._method = method
        self._domain = domain
        self._values: dict[int, Any] = {}
        self._fixed: set[int] = set()
        # Values that are None in every run of the module, or in none.
        self._decided: set[int] = set()
        self._parts: Mapping[str, Callable[[Step, list[Any]], Sequence[Any]]] = {
            "prim::Constant": self._constant,
            "prim::GetAttr": self._get_attribute,
            "prim::SetAttr": self._set_attribute,
            "prim::CreateObject": self._create,
            "prim::If": self._if,
            "prim::Loop": self._loop,
            "prim::RaiseException": self._raise,
            "prim::isinstance": self._is_instance,
            "prim::tolist": self._to_list,
            "prim::CallMethod": self._call_method,
            "prim::fork": self._fork,
            "prim::Enter": self._enter,
            "prim::Exit": self._exit,
            "aten::wait": lambda _, args: [args[0]],
            "aten::__is__": self._is,
            "aten::__isnot__": lambda step, args: [not self._is(step, args)[0]],
        }

    def call(self, arguments: Sequence[Any]) -> list[Any]:
        program = self._method.program
        self._values.update(zip(program.inputs, arguments, strict=True))
        self._fixed.add(program.inputs[0])
        return self._block(program)

    def _block(self, program: Program) -> list[Any]:
        values = self._values
        for step in program.steps:
            self._fixed.difference_update(step.outputs)
            self._decided.difference_update(step.outputs)
            results = self._execute(step, [values[number] for number in step.inputs])
            # Ops that change a container return it or nothing, whichever their schema says.
            values.update(zip(step.outputs, results, strict=False))
            if self._is_fixed(step):
                self._fixed.update(step.outputs)
            for number in step.drops:
                values.pop(number, None)
        return [values[number] for number in program.outputs]

    def _execute(self, step: Step, args: list[Any]) -> Sequence[Any]:
        part = self._parts.get(step.op)
        if part is not None:
            return part(step, args)
        if args and isinstance(args[0], StoredInstance) and step.op not in _PASSING:
            return [self._look_up(step, args)]
        native = STRUCTURE.get(step.op) or (ON_CONTAINERS.get(step.op) if step.on_container else None)
        if native is None:
            self._domain.varying = any(
                type(value) in {int, float} and number not in self._fixed
                for number, value in zip(step.inputs, args, strict=True)
            )
            return self._domain.apply(step, args)
        if step.writes_container:
            self._executor.note_container_change()
        self._domain.touch(step, args)
        return native(step.node, args)

    def _look_up(self, step: Step, args: Sequence[Any]) -> Any:
        if step.op != "aten::__getitem__":
            raise UnsupportedNodeError(f"{step.op} of stored instances of TorchScript classes")
        return self._domain.constant(step, args[0].follow(step, None, self._domain.plain(args[1])))

    def _is_fixed(self, step: Step) -> bool:
        if step.settled or (step.tests_none and step.inputs[0] in self._decided):
            return True
        if not step.pure or any(number not in self._fixed for number in step.inputs):
            return False
        if step.op != "prim::GetAttr":
            return True
        name = ir.attribute_name(step.node)
        return name != _TRAINING and name not in self._method.settable | self._executor.settable

    # --- Parts of the language ----------------------------------------------------------------------------------------

    def _constant(self, step: Step, _: list[Any]) -> list[Any]:
        return [self._domain.constant(step, step.node.output().toIValue())]

    def _get_attribute(self, step: Step, args: list[Any]) -> list[Any]:
        return [self._executor.read(step, args[0], ir.attribute_name(step.node))]

    def _set_attribute(self, step: Step, args: list[Any]) -> list[Any]:
        self._executor.write(step, args[0], ir.attribute_name(step.node), args[1])
        return []

    def _create(self, step: Step, _: list[Any]) -> list[Any]:
        return [Instance(str(step.node.output().type().annotation_str))]

    def _raise(self, _: Step, args: list[Any]) -> list[Any]:
        raise ModelRaisedError(str(args[0]))

    def _is_instance(self, step: Step, args: list[Any]) -> list[Any]:
        return [is_instance(self._domain.plain(args[0]), ir.tested_types(step.node), torch.Tensor)]

    def _to_list(self, step: Step, args: list[Any]) -> list[Any]:
        self._domain.control(step, 0, args[0])
        return [self._domain.plain(args[0]).tolist()]

    def _call_method(self, step: Step, args: list[Any]) -> list[Any]:
        return [self._executor.call_method(args[0], ir.attribute_name(step.node), args[1:])]

    def _fork(self, step: Step, args: list[Any]) -> list[Any]:
        return [self._executor.call_graph(step.node, args)]

    def _enter(self, _: Step, args: list[Any]) -> list[Any]:
        self._executor.enter(args[0])
        return [None]

    def _exit(self, _: Step, __: list[Any]) -> list[Any]:
        self._executor.leave()
        return [None]

    def _is(self, _: Step, args: list[Any]) -> list[Any]:
        return [self._domain.plain(args[0]) is self._domain.plain(args[1])]

    # --- Control flow -------------------------------------------------------------------------------------------------

    def _if(self, step: Step, args: list[Any]) -> list[Any]:
        condition = bool(self._domain.control(step, 0, args[0]))
        fixed = step.inputs[0] in self._fixed
        taken, other = step.blocks if condition else step.blocks[::-1]
        captured = [] if fixed or other.raises else self._captured(other, step)
        results = self._block(taken)
        if fixed or other.raises:
            settled = {out for inner, out in zip(taken.outputs, step.outputs, strict=True) if inner in self._fixed}
            self._fixed |= settled
            for inner, out, present in zip(taken.outputs, step.outputs, taken.present, strict=True):
                if present or inner in self._fixed or inner in self._decided:
                    self._decided.add(out)
            return results
        explored = self._explored(step, other, results)
        if explored is None:
            self._domain.skip(step, other, captured, results)
        self._settle(step, (taken, other), results, explored)
        # What only the other branch returns is what code behind a test for that will see.
        pairs = zip(results, explored or results, strict=True)
        return [two if one is UNSET else one for one, two in pairs]

    def _settle(
        self, step: Step, blocks: Sequence[Program], results: Sequence[Any], explored: Sequence[Any] | None
    ) -> None:
        """What is the same whichever branch runs is as settled as it is in both."""
        outputs = zip(blocks[0].outputs, blocks[1].outputs, step.outputs, results, explored or results, strict=True)
        for one, two, out, value, other in outputs:
            alike = explored is not None and type(value) in _PLAIN and type(value) is type(other) and value == other
            if (one == two or alike) and {one, two} <= self._fixed:
                self._fixed.add(out)
            same_presence = explored is not None and (value is None) == (other is None)
            if (one == two or same_presence) and {one, two} <= self._decided | self._fixed:
                self._decided.add(out)

    def _explored(self, step: Step, block: Program, results: Sequence[Any]) -> Sequence[Any] | None:
        """Runs the branch that was not taken and lets the domain merge it; None where that is not possible."""
        if not (self._domain.explores and block.harmless) or id(step) in self._executor.endless:
            return None
        if not self._domain.exploring:
            self._domain.explored_rounds = 0
        self._domain.exploring += 1
        try:
            explored = self._block(block)
            self._domain.merge(step, results, explored)
        except EndlessLoopError:
            self._executor.endless.add(id(step))
            return None
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            return None  # it was never meant for these values
        finally:
            self._domain.exploring -= 1
        return explored

    def _loop(self, step: Step, args: list[Any]) -> list[Any]:
        (body,) = step.blocks
        trips, going, carried = self._domain.control(step, 0, args[0]), args[1], args[2:]
        open_ended = not (step.inputs[0] in self._fixed and step.inputs[1] in self._fixed)
        count = 0
        while count < trips and self._domain.control(step, 1, going):
            self._count_round()
            self._values.update(zip(body.inputs, [count, *carried], strict=True))
            self._fixed.difference_update(body.inputs)
            going, *after = self._block(body)
            if open_ended or body.outputs[0] not in self._fixed:
                self._domain.repeat(step, carried, after)
            carried, count = after, count + 1
        if not count and open_ended:
            self._domain.skip(step, body, self._captured(body, step), carried)
        return carried

    def _count_round(self) -> None:
        """In a branch that was not taken a loop may never end, since its condition is not met as it would be."""
        if self._domain.exploring:
            self._domain.explored_rounds += 1
            if self._domain.explored_rounds > _MOST_EXPLORED_ROUNDS:
                raise EndlessLoopError("a branch that was not taken does not come to an end")

    def _captured(self, block: Program, step: Step) -> list[Any]:
        return [self._values[number] for number in step.captured if number in self._values and _reads(block, number)]


def _reads(block: Program, number: int) -> bool:
    return number in block.outputs or any(number in step.inputs or number in step.captured for step in block.steps)


def run_method(
    module: torch.jit.ScriptModule, inputs: Sequence[object], name: str = "forward", domain: Domain | None = None
) -> Any:
    """Runs a method of a loaded module on a private copy of its graph; raises as `Executor.run` does."""
    return Executor(module, domain).run(compile_graph(ir.inlined_copy(module, name)), name, inputs)


def compile_methods(module: torch.jit.ScriptModule, *, in_place: bool = False) -> Mapping[str, Method]:
    """All methods of a module by name; `in_place` compiles the module's own graphs, which edits can then reach."""
    inline = ir.inline_in_place if in_place else ir.inlined_copy
    return {name: compile_graph(inline(module, name)) for name in ir.method_names(module)}
