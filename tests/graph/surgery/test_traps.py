"""What has gone wrong in surgery on archives before, each as a net of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo
from pruning_server.graph.structure import analyse


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.3


class Hidden(nn.Module):
    """Code that evaluation does not reach: an auxiliary head, a switch, and a method that throws it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.auxiliary = nn.Linear(8, 4)
        self.other = nn.Linear(8, 6)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)
        self.mode = 0

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.body(x))).mean([2, 3])
        if self.training:
            return self.head(torch.relu(self.hidden(x))) + self.auxiliary(x)
        if self.mode == 1:
            return self.head(torch.tanh(self.other(x.view(-1, 8))))
        return self.head(torch.relu(self.hidden(x)))

    @torch.jit.export
    def set_mode(self, mode: int) -> None:
        self.mode = mode


def test_code_that_the_samples_do_not_reach_keeps_working() -> None:
    net = Hidden()
    cutting.randomize(net, 1)
    archive = zoo.scripted(net.eval())
    x = sample(2, 3, 6, 6)
    structure = analyse(zoo.reload(archive), {"forward": [(x,), (sample(3, 3, 6, 6),)]})
    assert structure.groups
    smaller, cut = shrinking.shrunk(archive, structure, shrinking.draw(structure, 0))
    masked = shrinking.mask(archive, cut)
    for module in (smaller, masked):
        module.eval()
    shrinking.assert_same(smaller, masked, "forward", (sample(4, 3, 6, 6),))
    for module in (smaller, masked):
        module.set_mode(1)
    shrinking.assert_same(smaller, masked, "forward", (sample(4, 3, 6, 6),))
    for module in (smaller, masked):
        module.train()
    shrinking.assert_same(smaller, masked, "forward", (sample(4, 3, 6, 6),))


class Shared(nn.Module):
    """The same number means two things: two heads, and two by two pixels."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y.view(-1, 4, 4, 3).transpose(1, 2).reshape(-1, 4, 12)
        y = torch.relu(y).view(-1, 4, 4, 3).transpose(1, 2).reshape(-1, 16, 3)
        return self.last(y.reshape(-1, 4, 12).flatten(1))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 48)
        self.last = nn.Linear(48, 3)


@pytest.mark.parametrize("scripted", [True, False])
def test_a_constant_that_several_ops_share_is_changed_for_one(scripted: bool) -> None:
    net = Shared()
    cutting.randomize(net, 2)
    x = sample(2, 5)
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x)
    shrinking.assert_shrinks(archive, {"forward": [(x,), (sample(3, 5),)]}, {"forward": [(sample(5, 5),)]})


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.recurrent = kind(6, 5, batch_first=True, **options)
        width = 10 if options.get("bidirectional") else 5
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(torch.relu(self.embed(x)))
        return self.head(y[:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_flat_weights_of_recurrent_layers_stay_tied(kind: type[nn.RNNBase], options: dict, form: str) -> None:
    net = Recurrent(kind, **options)
    cutting.randomize(net, 3)
    x = sample(2, 7, 4)
    archive = zoo.scripted(net.eval()) if form == "scripted" else zoo.traced(net, x)
    runs = [(x,), (sample(3, 7, 4),)]
    structure, smaller = shrinking.assert_shrinks(archive, {"forward": runs}, {"forward": [(sample(4, 9, 4),)]})
    assert ("recurrent.weight_hh_l0", 0) in shrinking.free(structure)
    names = {name: tensor.data_ptr() for name, tensor in cutting.stored(smaller).items()}
    if form == "scripted":
        flat = smaller.recurrent._c.getattr("_flat_weights")
        assert names["recurrent.weight_ih_l0"] in {tensor.data_ptr() for tensor in flat}


class Tied(nn.Module):
    """An embedding whose table is the output's kernel; the inner width can go, the words cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        return self.out(torch.relu(self.mix(y)) + y)


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen"])
def test_tied_weights_stay_tied(form: str) -> None:
    net = Tied()
    cutting.randomize(net, 4)
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    archive = zoo.traced(net, x) if form == "traced" else getattr(zoo, form)(net.eval())
    runs = [(x,), (x[:1],)]
    _, smaller = shrinking.assert_shrinks(archive, {"forward": runs}, {"forward": [(x.repeat(2, 2),)]})
    if form != "frozen":
        assert smaller.out.weight.data_ptr() == smaller.table.weight.data_ptr()


class Stateful(nn.Module):
    """A policy with a hidden state, a reset, and a second entry that shares its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)
        self.register_buffer("memory", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)) + self.memory
        self.memory[:] = y.mean(0, keepdim=True).detach()
        return self.last(torch.relu(self.second(y)))

    @torch.jit.export
    def reset(self) -> None:
        self.memory[:] = 0.0

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_state_and_other_methods_go_through() -> None:
    net = Stateful()
    cutting.randomize(net, 5)
    archive = zoo.scripted(net.eval())
    before = archive.memory.clone()
    x = sample(2, 4)
    structure, smaller = shrinking.assert_shrinks(
        archive,
        {"forward": [(x,), (sample(3, 4),)]},
        {"forward": [(sample(4, 4),)], "features": [(sample(5, 4),)]},
    )
    assert set(structure.methods) == {"forward", "reset", "features"}
    torch.testing.assert_close(archive.memory, before, rtol=0, atol=0)
    assert smaller.memory.shape[1] == smaller.first.weight.shape[0] < 8
    smaller.reset()
    assert not smaller.memory.any()
    # What `features` returns stays whole.
    assert smaller.second.weight.shape[0] == 8


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = norm
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.mark.parametrize(("norm", "sizes"), [(nn.GroupNorm(4, 8), [4]), (nn.GroupNorm(1, 8), [])])
@pytest.mark.parametrize("scripted", [True, False])
def test_group_norm_loses_whole_groups(norm: nn.Module, sizes: list[int], scripted: bool) -> None:
    net = Normed(norm)
    cutting.randomize(net, 6)
    x = sample(2, 3, 4, 4)
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x)
    runs = [(x,), (sample(3, 3, 5, 5),)]
    structure, _ = shrinking.assert_shrinks(archive, {"forward": runs}, {"forward": [(sample(4, 3, 3, 3),)]})
    assert [group.size for group in structure.groups] == sizes


class LayerNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.down(functional.gelu(self.up(y))) + y


def test_layer_norm_freezes_what_it_normalizes() -> None:
    net = LayerNormed()
    cutting.randomize(net, 7)
    archive = zoo.scripted(net.eval())
    x = sample(2, 4)
    structure, _ = shrinking.assert_shrinks(archive, {"forward": [(x,)]}, {"forward": [(sample(4, 4),)]})
    assert shrinking.free(structure) == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}
    assert any("layer_norm" in use.op and "first.weight" in use.layers for use in structure.frozen)


class Parts(nn.Module):
    """Two halves of one convolution go different ways; one of them is split again by lengths."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(3, 12, 1)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.rand(12, 1, 1))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.how == "chunk":
            one, other = x.chunk(2, 1)
        elif self.how == "split":
            one, other = x.split(6, 1)
        elif self.how == "split_with_sizes":
            one, other = x.split([6, 6], 1)
        elif self.how == "tensor_split":
            one, other = x.tensor_split(2, 1)
        elif self.how == "tensor_split at":
            one, other = x.tensor_split([6], 1)
        elif self.how == "slice":
            one, other = x[:, :6], x[:, 6:]
        elif self.how == "from the end":
            one, other = x[:, :-6], x[:, -6:]
        else:
            one, other = x.narrow(1, 0, 6), x.narrow(1, 6, 6)
        return one, other

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.halves(torch.tanh(self.first(x)) * self.scale)
        return self.last(torch.cat([torch.relu(self.left(one)), self.right(other)], 1))


@pytest.mark.parametrize(
    "how", ["chunk", "split", "split_with_sizes", "tensor_split", "tensor_split at", "slice", "from the end", "narrow"]
)
@pytest.mark.parametrize("form", ["scripted", "traced", "frozen"])
def test_parts_of_different_lengths(how: str, form: str) -> None:
    net = Parts(how)
    cutting.randomize(net, 8)
    x = sample(2, 3, 4, 4)
    archive = zoo.traced(net, x) if form == "traced" else getattr(zoo, form)(net.eval())
    structure = analyse(zoo.reload(archive), {"forward": [(x,), (sample(3, 3, 5, 5),)]})
    assert not structure.failed_rules
    # Unequal on purpose: four of the first half, one of the second. Both lie on the axis with 12 coordinates.
    axis = next((one.tensor, one.axis) for one in structure.axes if len(one.classes) == 12)
    removal: dict[int, list[int]] = {}
    for number, group in enumerate(structure.groups):
        for member in group.members:
            if (member.tensor, member.axis) == axis:
                gone = [channel for channel, (at,) in enumerate(member.coordinates) if at in {0, 1, 2, 4, 7}]
                removal[number] = gone
    smaller, cut = shrinking.shrunk(archive, structure, removal)
    shrinking.assert_same(smaller, shrinking.mask(archive, cut), "forward", (sample(4, 3, 3, 3),))
    if form != "frozen":
        assert smaller.left.weight.shape[1] == 2
        assert smaller.right.weight.shape[1] == 5


class ReadWidth(nn.Module):
    """The width of a head is computed from another width that can be pruned by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(4, 12)
        self.project = nn.Linear(12, 36)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = torch.relu(self.inward(x))
        q, k, v = self.project(y).unflatten(-1, (3, y.size(-1))).unbind(2)
        q, k, v = [one.view(n, t, 4, y.size(-1) // 4).transpose(1, 2) for one in (q, k, v)]
        z = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return self.out(z.transpose(1, 2).reshape(n, t, y.size(-1)))


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen"])
def test_a_size_that_is_read_off_another_axis_is_put_right(form: str) -> None:
    net = ReadWidth()
    cutting.randomize(net, 9)
    x = sample(2, 5, 4)
    archive = zoo.traced(net, x) if form == "traced" else getattr(zoo, form)(net.eval())
    structure, _ = shrinking.assert_shrinks(
        archive, {"forward": [(x,), (sample(3, 5, 4),)]}, {"forward": [(sample(4, 6, 4),)]}
    )
    assert sorted((group.size, group.kind) for group in structure.groups) == [(4, "head"), (12, "channel")]
