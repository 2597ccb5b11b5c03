"""Activations around stored weights: what every op that is linear in a stored kernel takes and gives, in a run of forward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pruning_server.graph import ir
from pruning_server.graph.domain import Domain
from pruning_server.graph.execution import Executor
from pruning_server.graph.geometry import Geometry, by_channel, channels_of, geometry_of, unfolded
from pruning_server.graph.program import Step, compile_graph
from pruning_server.graph.readers import read_elsewhere
from pruning_server.graph.slots import Slot, find_places
from pruning_server.graph.state import StateGuard

_CONVOLUTIONS = frozenset(
    {
        "aten::conv1d",
        "aten::conv2d",
        "aten::conv3d",
        "aten::conv_transpose1d",
        "aten::conv_transpose2d",
        "aten::conv_transpose3d",
        "aten::_convolution",
        "aten::_convolution_mode",
        "aten::convolution",
    }
)
# Where the input, the kernel and the bias stand among the arguments, and whether the kernel's last axis is contracted.
_PRODUCTS: Mapping[str, tuple[int, int, int | None, bool]] = {
    "aten::linear": (0, 1, 2, True),
    "aten::addmm": (1, 2, 0, False),
    "aten::mm": (0, 1, None, False),
    "aten::matmul": (0, 1, None, False),
}
# Kernel and bias of these, by position.
_LINEAR = {op: frozenset({1, 2}) for op in _CONVOLUTIONS} | {
    op: frozenset(place for place in (kernel, bias) if place is not None)
    for op, (_, kernel, bias, _) in _PRODUCTS.items()
}


@dataclass(frozen=True)
class LinearCall:
    """One use of a stored weight by an op that is linear in it.

    Attributes:
        weight: dotted name of the stored kernel.
        bias: dotted name of the stored bias [out] that the op adds, if any, and that nothing reads but ops like this one.
        op: the op's name.
        inputs: what it was given: [N, in, *space] of a convolution, [..., in] of a product.
        output: what it gave, the bias included: [N, out, *space] or [..., out].
        kernel: the kernel as stored.
        out_axis: the axis of `kernel` that is the output's channels.
        in_axis: the axis that is contracted with the input's channels.
        geometry: of a convolution; None for products.
    """

    weight: str
    bias: str | None
    op: str
    inputs: torch.Tensor
    output: torch.Tensor
    kernel: torch.Tensor
    out_axis: int
    in_axis: int
    geometry: Geometry | None

    @property
    def groups(self) -> int:
        """Independent parts that the channels fall into; 1 but for grouped convolutions."""
        return self.geometry.groups if self.geometry else 1

    def columns(self) -> torch.Tensor:
        """The input by channel: [in, positions]; for grouped convolutions all groups' channels."""
        return by_channel(self.inputs, self.geometry)

    def rows(self) -> torch.Tensor:
        """The output by channel: [out, positions]."""
        return by_channel(self.output, self.geometry)

    @property
    def has_design(self) -> bool:
        """Whether the op is a plain regression of its output on its input: all but transposed convolutions are."""
        return self.geometry is None or not self.geometry.transposed

    def positions(self) -> int:
        """Rows of the design matrix: samples times the output's places."""
        return self.output.numel() // max(1, channels_of(self.output, self.geometry))

    def design(self, positions: torch.Tensor | None = None) -> torch.Tensor:
        """The design matrix [groups, positions, features]: times the flattened kernel it gives the output without bias.

        Features are in the order of `kernel` with `out_axis` first: input channels of the group, then the kernel's
        extent. Positions are in the order of `rows`.

        Args:
            positions: which of them, int64; None: all.

        Raises:
            ValueError: the op is a transposed convolution.
        """
        if self.geometry is None:
            flat = self.inputs.reshape(1, -1, self.inputs.shape[-1])
            return flat if positions is None else flat[:, positions.to(flat.device)]
        if not self.has_design:
            raise ValueError("a transposed convolution has no design matrix")
        return unfolded(self.inputs, self.kernel, self.geometry, positions)


def capture(
    module: torch.jit.ScriptModule,
    inputs: Sequence[object],
    visit: Callable[[LinearCall], None],
    names: Collection[str] | None = None,
    *,
    guard: StateGuard | None = None,
) -> Any:
    """Runs `forward` and hands every use of a stored kernel to `visit`; returns the output.

    A kernel that is computed, such as a normalized one, is no stored one.

    Args:
        module: a loaded module, thawed where it was frozen; its state is put back.
        inputs: the arguments of forward; defaults are filled in.
        visit: is called in the order of execution, without gradients.
        names: limits the calls to these stored tensors; None: all.
        guard: of the module, where one exists already; it is entered for the run.

    Raises:
        TypeError: too few arguments.
        RuntimeError: whatever the model raises, or a node that cannot be executed.
    """
    return Capture(module, guard).run(inputs, visit, names)


class Capture:
    """Runs forward of one module many times; the code is prepared once.

    Args:
        module: a loaded module, thawed where it was frozen.
        guard: of the module, where one exists already.
    """

    def __init__(self, module: torch.jit.ScriptModule, guard: StateGuard | None = None) -> None:
        self._module = module
        self._guard = guard or StateGuard(module)
        self._method = compile_graph(ir.inlined_copy(module, "forward"))
        self._elsewhere = frozenset(slot.name for slot in read_elsewhere(module, _LINEAR))

    def run(
        self, inputs: Sequence[object], visit: Callable[[LinearCall], None], names: Collection[str] | None = None
    ) -> Any:
        """One run; arguments, result and errors are those of `capture`."""
        places = find_places(self._module)
        with torch.no_grad(), self._guard:
            wanted = None if names is None else frozenset(names)
            domain = Watching(places.slots.values(), visit, wanted, self._elsewhere)
            return Executor(self._module, domain, places).run(self._method, "forward", inputs)


class Watching(Domain):
    """Reports the uses of stored kernels to `visit`; `names` limits them. Other ops read the tensors of `elsewhere`, too."""

    def __init__(
        self,
        slots: Collection[Slot],
        visit: Callable[[LinearCall], None],
        names: frozenset[str] | None,
        elsewhere: frozenset[str] = frozenset(),
    ) -> None:
        self._visit = visit
        self._names = names
        # The first name of each memory: what a survey of the weights calls it.
        self._slots: dict[tuple[int, int], Slot] = {}
        self._elsewhere: set[str] = set()
        for slot in slots:
            if slot.tensor.layout is torch.strided and slot.tensor.is_floating_point() and slot.tensor.numel():
                first = self._slots.setdefault((slot.tensor.data_ptr(), slot.tensor.numel()), slot)
                if slot.name in elsewhere:
                    self._elsewhere.add(first.name)

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs an op, and shows it where its kernel is stored."""
        results = super().apply(step, inputs)
        if step.op in _CONVOLUTIONS:
            self._convolution(step, inputs, results[0])
        elif step.op in _PRODUCTS:
            self._product(step, inputs, results[0])
        return results

    def _stored(self, tensor: Any) -> Slot | None:
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            return None
        slot = self._slots.get((tensor.data_ptr(), tensor.numel()))
        return slot if slot is not None and slot.tensor.dtype == tensor.dtype else None

    def _wanted(self, slot: Slot | None) -> bool:
        return slot is not None and (self._names is None or slot.name in self._names)

    def _bias(self, tensor: Any, channels: int) -> str | None:
        slot = self._stored(tensor)
        # One number that is added to all channels belongs to none of them.
        if slot is None or slot.tensor.shape != (channels,) or slot.name in self._elsewhere:
            return None
        return slot.name

    def _convolution(self, step: Step, inputs: Sequence[Any], output: torch.Tensor) -> None:
        given = dict(zip((argument.name for argument in ir.arguments_of(step.node)), inputs, strict=True))
        value, kernel = given["input"], given["weight"]
        slot = self._stored(kernel)
        if slot is None or not self._wanted(slot) or not _same_layout(slot.tensor, kernel):
            return
        geometry = geometry_of(step.op, given, kernel)
        call = LinearCall(
            weight=slot.name,
            bias=self._bias(given.get("bias"), channels_of(output, geometry)),
            op=step.op,
            inputs=value,
            output=output,
            kernel=slot.tensor,
            out_axis=1 if geometry.transposed else 0,
            in_axis=0 if geometry.transposed else 1,
            geometry=geometry,
        )
        self._visit(call)

    def _product(self, step: Step, inputs: Sequence[Any], output: torch.Tensor) -> None:
        at_input, at_kernel, at_bias, last = _PRODUCTS[step.op]
        value, kernel = inputs[at_input], inputs[at_kernel]
        slot = self._stored(kernel)
        if slot is None or not self._wanted(slot) or slot.tensor.dim() != 2 or kernel.dim() != 2:
            return
        contracted = 1 if last else 0
        if _same_layout(slot.tensor, kernel):
            in_axis = contracted
        elif _same_layout(slot.tensor.t(), kernel):
            in_axis = 1 - contracted
        else:
            return
        if step.op == "aten::addmm" and any(factor != 1 for factor in inputs[3:5]):
            return
        call = LinearCall(
            weight=slot.name,
            bias=None if at_bias is None else self._bias(inputs[at_bias], output.shape[-1]),
            op=step.op,
            inputs=value,
            output=output,
            kernel=slot.tensor,
            out_axis=1 - in_axis,
            in_axis=in_axis,
            geometry=None,
        )
        self._visit(call)


def _same_layout(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    # The stride of an axis of length 1 says nothing.
    return all(size == 1 or a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))
