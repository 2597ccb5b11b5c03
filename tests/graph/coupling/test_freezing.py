"""What cannot be followed stays as it is, and says why; what cannot change is never touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import zoo
from pruning_server.graph.coupling.groups import Coupling, couple
from pruning_server.graph.coupling.tracer import Tracer


class Between(nn.Module):
    """Something between two linear layers: [N, 6] in, [N, 3] out."""

    def __init__(self, width: int = 4, made: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(made, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))

    def between(self, x: Tensor) -> Tensor:
        return x


class Normed(Between):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Softmaxed(Between):
    def between(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class Summed(Between):
    def __init__(self) -> None:
        super().__init__(made=1)

    def between(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


class AlwaysDropped(Between):
    def between(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, True)


class Unknown(Between):
    def between(self, x: Tensor) -> Tensor:
        return torch.linalg.pinv(x).t()


class Picked(Between):
    def between(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 3], x[:, 2], x[:, 1], x[:, 0]], 1)


class OneSlice(Between):
    def __init__(self) -> None:
        super().__init__(made=1)

    def between(self, x: Tensor) -> Tensor:
        return x[:, 2:3]


class Rolled(Between):
    def between(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)


class MeetsInput(Between):
    def __init__(self) -> None:
        super().__init__(width=6, made=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + x)


class WrittenIntoSlice(Between):
    def between(self, x: Tensor) -> Tensor:
        whole = torch.ones_like(x[:, :1]).repeat(1, 4)
        whole[:, 0:4] = x
        return whole


class Counted(Between):
    def between(self, x: Tensor) -> Tensor:
        return x * float(x.numel())


class TurnedInPlace(Between):
    def __init__(self) -> None:
        super().__init__(width=5, made=5)

    def between(self, x: Tensor) -> Tensor:
        return x.t_()


class Returned(Between):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return torch.cat([self.last(hidden), hidden], 1)


class Branching(Between):
    """Another branch, with effects, uses the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.total.add_(x.detach().sum(0))
        return x


class OwnWrites(Between):
    """Another branch changes nothing but what it has made."""

    def between(self, x: Tensor) -> Tensor:
        if x.size(0) > 100:
            parts: list[Tensor] = []
            for _ in range(2):
                parts.append(x * 0.5)  # noqa: PERF401 - the append is the point
            mask = torch.zeros_like(x)
            mask.masked_fill_(x > 0, 1.0)
            return parts[0] + parts[1] * mask
        return x


class OtherWrites(Between):
    """Another branch changes a tensor that it has not made."""

    def between(self, x: Tensor) -> Tensor:
        if x.size(0) > 100:
            x.mul_(2.0)
        return x


class ByRank(Between):
    """A branch for inputs of another rank."""

    def between(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            x = x.unsqueeze(0)
        return x


class Settable(Between):
    """The width is an attribute that another method sets."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 2

    @torch.jit.export
    def set_half(self, half: int) -> None:
        self.half = half

    def between(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), 2 * self.half)


FREEZING = [
    (Normed, "layer_norm"),
    (Softmaxed, "softmax"),
    (Summed, "sum"),
    (AlwaysDropped, "dropout"),
    (Unknown, "pinv"),
    (Rolled, "roll"),
    (MeetsInput, "add"),
    (WrittenIntoSlice, "copy_"),
    (Counted, "numel"),
    (TurnedInPlace, "t_"),
    (Returned, "prim::Return"),
    (Branching, "prim::If"),
    (OtherWrites, "prim::If"),
    (Settable, "reshape"),
]

X = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))


def free(coupling: Coupling) -> set[tuple[str, int]]:
    return {(member.tensor, member.axis) for group in coupling.groups for member in group.members}


def test_nothing_between_is_free() -> None:
    coupling = couple(zoo.scripted(Between().eval()), {"forward": [(X,)]})
    assert free(coupling) == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}
    (group,) = coupling.groups
    assert {member.tensor for member in group.members if member.consumer} == {"last.weight"}


@pytest.mark.parametrize("kind", [OwnWrites, ByRank])
def test_branches_without_effects_free_what_they_use(kind: type[nn.Module]) -> None:
    coupling = couple(zoo.scripted(kind().eval()), {"forward": [(X,)]})
    assert free(coupling) == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}


@pytest.mark.parametrize(("kind", "op"), FREEZING, ids=[kind.__name__ for kind, _ in FREEZING])
def test_frozen_with_op_source_and_reason(kind: type[nn.Module], op: str) -> None:
    coupling = couple(zoo.scripted(kind().eval()), {"forward": [(X,)]})
    assert ("first.weight", 0) not in free(coupling)
    found = [one for one in coupling.frozen if op in one.op and "first.weight" in one.layers]
    assert found, coupling.frozen
    assert all(one.reason for one in found)
    assert op == "prim::Return" or all(one.source for one in found)


def test_a_few_picked_channels_stay_and_what_meets_them() -> None:
    coupling = couple(zoo.scripted(Picked().eval()), {"forward": [(X,)]})
    assert free(coupling) == set()


def test_only_the_sliced_channel_stays() -> None:
    coupling = couple(zoo.scripted(OneSlice().eval()), {"forward": [(X,)]})
    (group,) = coupling.groups
    member = next(one for one in group.members if one.tensor == "first.weight")
    assert member.coordinates == ((0,), (1,), (3,))
    assert any("slice" in one.op and "first.weight" in one.layers for one in coupling.frozen)


class Sized(Between):
    def between(self, x: Tensor) -> Tensor:
        scaled = x / (x.size(1) * 2)
        return scaled.view(x.size(0), x.size(1))


def test_a_size_is_pinned_in_arithmetic_and_adapts_in_a_shape() -> None:
    tracer = Tracer(zoo.scripted(Sized().eval()))
    tracer.trace("forward", (X,))
    tracer.finish()
    assert [(pin.node.kind(), pin.position, int(pin.size)) for pin in tracer.pins] == [("aten::mul", 0, 4)]
    assert tracer.failed_rules == []


def test_code_of_other_methods_freezes_what_it_uses_alone() -> None:
    coupling = couple(zoo.scripted(zoo.Switch().eval()), {"forward": [(torch.rand(2, 4), False)]})
    reasons = {name: one.reason for one in coupling.frozen for name in one.layers}
    assert "no run" in reasons["exported.weight"]
    assert not any(name.startswith(("exported", "idle")) for name, _ in free(coupling))
    both = couple(
        zoo.scripted(zoo.Switch().eval()), {"forward": [(torch.rand(2, 4), True)], "features": [(torch.rand(2, 4),)]}
    )
    assert ("layers.0.weight", 0) in free(both)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.decode.weight
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.again(functional.relu(self.decode(self.encode(x))))))


def test_tied_weights_are_one_tensor() -> None:
    (group,) = couple(zoo.scripted(Tied().eval()), {"forward": [(X,)]}).groups
    places = {(member.tensor, member.axis): member for member in group.members}
    assert set(places) == {("encode.weight", 0), ("decode.weight", 0), ("decode.weight", 1), ("last.weight", 1)}
    assert places["decode.weight", 0].aliases == ("again.weight",)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.last = nn.Linear(4, 2)
        self.state = torch.zeros(5, 4)
        self.register_buffer("kept", torch.zeros(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.state = torch.tanh(self.first(x) + self.state)
        self.kept.copy_(self.state)
        return self.last(self.kept)


def test_a_state_goes_with_what_is_stored_in_it_and_is_left_as_it_was() -> None:
    module = zoo.scripted(Remembering())
    (group,) = couple(module, {"forward": [(X,)]}).groups
    places = {(member.tensor, member.axis) for member in group.members}
    assert {("state", 1), ("kept", 1), ("first.weight", 0), ("last.weight", 1)} <= places
    assert not module.state.any()
    assert not module.kept.any()
