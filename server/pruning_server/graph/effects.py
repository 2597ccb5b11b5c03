"""What one op does with the flows that reach it: it notes uses and obstacles, and says what its result is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pruning_server.graph import rules
from pruning_server.graph.flow import NOTHING, Findings, Flow, Site, join
from pruning_server.graph.slots import Path, Slot
from pruning_server.graph.values import WeightKind


@dataclass(frozen=True)
class Call:
    """One op with what reaches it; `constants` are the Python values of its constant arguments by position."""

    op: str
    site: Site
    names: tuple[str, ...]
    args: tuple[Flow, ...]
    constants: Mapping[int, object]
    tensors: frozenset[int]
    lists: frozenset[int]
    gives_tensor: bool

    def arg(self, index: int) -> Flow:
        """The flow of an argument; nothing where the op has fewer."""
        return self.args[index] if index < len(self.args) else NOTHING

    def named(self, name: str) -> Flow:
        """The flow of the argument of that name in the schema."""
        return self.arg(self.names.index(name)) if name in self.names else NOTHING

    @property
    def active(self) -> bool:
        """Whether any argument depends on the input."""
        return any(flow.any_active for flow in self.args)


class Effects:
    """Applies the tables of `rules` to calls and collects what they show in `findings`."""

    def __init__(self, slots: Mapping[Path, Slot], findings: Findings) -> None:
        self._slots = slots
        self._findings = findings
        self._handlers: tuple[tuple[Callable[[str], bool], Callable[[Call], Flow]], ...] = (
            (rules.BY_POSITION.__contains__, self._by_position),
            (rules.BY_NAME.__contains__, self._by_name),
            (rules.RECURRENT_LISTS.__contains__, self._recurrent),
            (lambda op: rules.is_known(op, rules.PRODUCTS), self._product),
            (rules.LIST_PRODUCTS.__contains__, self._list_product),
            (lambda op: rules.is_known(op, rules.MULTIPLICATIONS), self._multiplication),
            (lambda op: rules.is_known(op, rules.DIVISIONS), self._division),
            (lambda op: rules.is_known(op, rules.ADDITIONS), self._addition),
            (lambda op: rules.base_name(op) == "aten::pow", self._power),
            (lambda op: rules.is_known(op, rules.VIEWS), self._view),
            (lambda op: rules.is_known(op, rules.COPIES), self._copy),
            (rules.JOINS.__contains__, self._joined),
            (rules.GATHERS.__contains__, self._gather),
            (lambda op: op in rules.READS or op == "aten::copy_", self._read),
        )

    def apply(self, call: Call) -> Flow:
        """The op's result; uses and obstacles go into the findings."""
        for matches, handler in self._handlers:
            if matches(call.op):
                return handler(call)
        self._block(call, call.args, f"weights cannot be followed through {call.op}", hard=True)
        return Flow(active=call.active)

    # --- Weights at known positions -----------------------------------------------------------------------------------

    def _by_position(self, call: Call) -> Flow:
        return self._weighted(call, dict(rules.BY_POSITION[call.op]))

    def _by_name(self, call: Call) -> Flow:
        kinds = rules.BY_NAME[call.op]
        for name in rules.STATISTIC_NAMES:
            self._findings.statistics |= call.named(name).carried
        for name in rules.SCALE_NAMES.intersection(call.names):
            if kinds.get(name) is WeightKind.NORM:
                self._findings.scales |= call.named(name).carried
        result = self._weighted(call, {i: kinds[name] for i, name in enumerate(call.names) if name in kinds})
        if "weight_norm" in call.op:  # it scales its first argument and is no use of it
            return replace(result, stored=call.arg(0).stored, scaled=call.arg(0).scaled, fresh=True)
        return result

    def _weighted(self, call: Call, kinds: Mapping[int, WeightKind]) -> Flow:
        for index, kind in kinds.items():
            self._findings.use(call.arg(index).carried, kind, call.site)
        inputs = [
            flow
            for index, flow in enumerate(call.args)
            if index not in kinds and (index >= len(call.names) or call.names[index] not in rules.STATISTIC_NAMES)
        ]
        self._block(call, inputs, f"it is an input of {call.op}, not its weight")
        return Flow(active=call.active)

    def _recurrent(self, call: Call) -> Flow:
        params = call.named("params").carried
        for path in params:
            matrix = self._slots[path].tensor.dim() >= 2
            self._findings.use({path}, WeightKind.RECURRENT if matrix else WeightKind.BIAS, call.site)
        others = [flow for name, flow in zip(call.names, call.args, strict=False) if name != "params"]
        self._block(call, others, f"it is an input or a state of {call.op}, not its weight")
        return Flow(active=call.active)

    # --- Products -----------------------------------------------------------------------------------------------------

    def _product(self, call: Call) -> Flow:
        first, second = rules.PRODUCTS[rules.base_name(call.op) if call.op not in rules.PRODUCTS else call.op]
        self._factors(call, (call.arg(first), call.arg(second)))
        if first == 1:
            self._addend(call, call.arg(0), call.op)
        return Flow(active=call.active)

    def _list_product(self, call: Call) -> Flow:
        factors = call.arg(rules.LIST_PRODUCTS[call.op])
        flows = [inner for _, inner in factors.entries] if factors.entries else [factors]
        self._factors(call, flows)
        return Flow(active=call.active)

    def _factors(self, call: Call, factors: Sequence[Flow]) -> None:
        weights = [flow for flow in factors if flow.stored and not flow.any_active]
        if len(weights) == len(factors):
            self._block(call, weights, f"{call.op} multiplies it with another stored tensor, not with an activation")
            return
        for path in frozenset[Path]().union(*(flow.stored for flow in weights)):
            if self._slots[path].parameter or any(flow.any_active for flow in factors):
                self._findings.use({path}, WeightKind.LINEAR, call.site)
            else:  # such as the singular vectors of a spectral norm, which meet the weight but no activation
                self._findings.block({path}, f"{call.op} multiplies it with no activation", call.site, hard=False)
        others = [flow for flow in factors if flow.any_active]
        self._block(call, others, f"it reaches {call.op} as a part of an activation")

    # --- Element by element -------------------------------------------------------------------------------------------

    def _multiplication(self, call: Call) -> Flow:
        one, other = call.arg(0), call.arg(1)
        if one.carried and other.carried and not call.active:
            kept, dropped = (one, other) if self._rank(one) >= self._rank(other) else (other, one)
            self._block(call, [dropped], "it multiplies another stored tensor element by element")
            return Flow(stored=kept.stored, scaled=kept.scaled, fresh=True)
        if not call.active:
            return Flow(stored=one.stored | other.stored, scaled=one.scaled | other.scaled, fresh=True)
        for flow in (one, other):
            if not flow.any_active:
                self._elementwise(call, flow, WeightKind.NORM, "multiplied element by element with an activation")
        return Flow(scaled=one.carried | other.carried, active=True, fresh=True)

    def _division(self, call: Call) -> Flow:
        numerator, denominator = call.arg(0), call.arg(1)
        self._block(call, [denominator], "it divides: removing its elements would divide by zero", hard=True)
        if call.active:
            return Flow(scaled=numerator.carried, active=True, fresh=True)
        return Flow(stored=numerator.stored, scaled=numerator.scaled, fresh=True)

    def _addition(self, call: Call) -> Flow:
        if 0 in call.lists:
            return join([call.arg(0).merged(), call.arg(1).merged()])
        one, other = call.arg(0), call.arg(1)
        for flow, partner, position in ((one, other, 1), (other, one, 0)):
            if partner.carried or position not in call.tensors:
                self._block(call, [flow], f"{call.op} does not keep zeros at zero")
            else:
                self._addend(call, flow, call.op)
        return Flow(active=call.active)

    def _addend(self, call: Call, flow: Flow, op: str) -> None:
        if not flow.any_active:
            self._elementwise(call, flow, WeightKind.BIAS, f"added by {op}: neither a kernel nor a bias vector")

    def _elementwise(self, call: Call, flow: Flow, kind: WeightKind, otherwise: str) -> None:
        """Vectors that are parameters are biases or scales; other tensors are data that the model was given."""
        for path in flow.carried:
            slot = self._slots[path]
            if slot.parameter and slot.tensor.numel() == max(slot.tensor.shape, default=1):
                self._findings.use({path}, kind, call.site)
                if kind is WeightKind.NORM:
                    self._findings.scales.add(path)
            else:
                self._findings.block({path}, f"it is {otherwise}", call.site, hard=False)

    def _power(self, call: Call) -> Flow:
        exponent = call.constants.get(1)
        if isinstance(exponent, int | float) and exponent > 0 and not call.arg(1).carried:
            return self._copy(call)
        self._block(call, call.args, f"{call.op} does not keep zeros at zero", hard=True)
        return Flow(active=call.active)

    def _rank(self, flow: Flow) -> tuple[bool, int]:
        slots = [self._slots[path] for path in flow.carried]
        return any(slot.parameter for slot in slots), max(slot.tensor.numel() for slot in slots)

    # --- Movement -----------------------------------------------------------------------------------------------------

    def _view(self, call: Call) -> Flow:
        source = call.arg(0).merged() if 0 in call.lists else call.arg(0)
        return replace(source, objects=frozenset())

    def _copy(self, call: Call) -> Flow:
        source = call.arg(0)
        return Flow(stored=source.stored, scaled=source.scaled, active=source.any_active, fresh=True)

    def _joined(self, call: Call) -> Flow:
        parts = call.arg(0).merged()
        return Flow(stored=parts.stored, scaled=parts.scaled, active=parts.active, fresh=True)

    def _gather(self, call: Call) -> Flow:
        table, active_index = call.arg(0), any(flow.any_active for flow in call.args[1:])
        if table.carried and active_index and not table.any_active:
            self._findings.use(table.carried, WeightKind.EMBEDDING, call.site)
            return Flow(active=True)
        return Flow(stored=table.stored, scaled=table.scaled, active=call.active, fresh=True)

    def _read(self, call: Call) -> Flow:
        self._block(call, call.args, f"{call.op} only reads it")
        return Flow(active=call.active and call.gives_tensor)

    def _block(self, call: Call, flows: Sequence[Flow], reason: str, *, hard: bool = False) -> None:
        for flow in flows:
            self._findings.block(flow.carried, reason, call.site, hard=hard)
