"""Two models side by side: what is called, what is compared, where they part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.proving import loader, shrunk, small_archive
from pruning_server.graph.proof.difference import relative_error, value_error
from pruning_server.graph.proof.divergence import first_divergence
from pruning_server.graph.proof.masked import mask, randomize
from pruning_server.graph.proof.pair import Call, OriginalRaisedError, Pair, ShrunkRaisedError
from pruning_server.graph.proof.stored import adapted
from pruning_server.graph.proof.stories import plan_stories

X = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STORY = (Call("forward", (X,)),)
INNER = {("inner.weight", 0): [1, 5, 6]}


def random_pair(way: str = "scripted", spoil: Callable[[torch.jit.ScriptModule], None] | None = None) -> Pair:
    """Random weights in float64, without dropout; `spoil` does something to the shrunk model."""
    archive = small_archive(way)
    smaller, cut = shrunk(archive, X.float(), INNER)
    masked, small = (adapted(zoo.reload(one), torch.float64, without_dropout=True).eval() for one in (archive, smaller))
    mask(masked, small, cut)
    randomize(masked, small, cut, seed=2)
    if spoil is not None:
        with torch.no_grad():
            spoil(small)
    return Pair(masked, small, cut, seed=0)


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_equal_models_are_equal_in_both_modes_and_are_left_as_they_were(way: str) -> None:
    pair = random_pair(way)
    before = {name: tensor.clone() for name, tensor in pair.shrunk.state_dict().items()}
    for mode in (False, True):
        pair.train(mode)
        compared = pair.compare(STORY)
        assert compared.error <= 1e-12
        assert compared.same_draws
        assert compared.scale > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.shrunk.state_dict().items())


def test_running_statistics_are_compared_at_kept_coordinates() -> None:
    """A bias before batch norm changes no output in training mode, only what is learned of it."""
    pair = random_pair(spoil=lambda small: small.first.bias.add_(0.1))
    pair.train(mode=True)
    assert pair.compare(STORY).error > 1e-3


def test_the_first_op_that_differs_is_named() -> None:
    pair = random_pair(spoil=lambda small: small.back.bias.add_(0.1))
    assert pair.compare(STORY).error > 1e-6
    found = first_divergence(pair, STORY, 1e-9, seed=0)
    assert found is not None
    assert found.op == "aten::conv2d"
    assert "conv.py" in found.source
    # `first` and `inner` come before `back`, and agree where they were cut.
    ends = random_pair(spoil=lambda small: small.head.bias.add_(0.1))
    found = first_divergence(ends, STORY, 1e-9, seed=0)
    assert found is not None
    assert found.op == "aten::linear"


def test_a_producer_in_another_order_is_named() -> None:
    def turn(small: torch.jit.ScriptModule) -> None:
        small.inner.weight.copy_(small.inner.weight.flip(0))

    pair = random_pair(spoil=turn)
    found = first_divergence(pair, STORY, 1e-9, seed=0)
    assert found is not None
    assert found.op == "aten::conv2d"
    equal = random_pair()
    assert first_divergence(equal, STORY, 1e-9, seed=0) is None


def test_an_op_that_raises_is_named() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X.float(), INNER)
    masked = zoo.reload(archive)
    mask(masked, smaller, cut)
    smaller.back._c.setattr("weight", nn.Parameter(torch.rand(8, 12, 1, 1)))
    pair = Pair(masked.eval(), smaller.eval(), cut, seed=0)
    story = (Call("forward", (X.float(),)),)
    with pytest.raises(ShrunkRaisedError):
        pair.compare(story)
    found = first_divergence(pair, story, 1e-4, seed=0)
    assert found is not None
    assert found.op == "aten::conv2d"
    assert found.finding.startswith("it raises")
    with pytest.raises(OriginalRaisedError):
        pair.compare((Call("forward", (X.float()[:, :2],)),))


class Moody(nn.Module):
    """Methods of every kind, and a state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("state", torch.zeros(3))
        self.count = 0
        self.double = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.state = self.state + y.mean(0).detach()
        self.count += 1
        return (y * 2 if self.double else y) + self.state + self.count

    @torch.jit.export
    def reset(self) -> None:
        self.state = torch.ones(3)

    @torch.jit.export
    def set_double(self, wanted: bool) -> None:
        self.double = wanted

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.layer(x)

    @torch.jit.export
    def named(self, name: str) -> int:
        return len(name)


def test_setters_are_called_before_forward_and_methods_with_its_samples() -> None:
    archive = zoo.scripted(Moody())
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    stories = plan_stories(archive, [Call("forward", (x,)), Call("forward", (x[:1],))])
    assert {name: [[call.method for call in story] for story in told] for name, told in stories.items()} == {
        "forward": [["forward"], ["forward"]],
        "features": [["features"]],
        "named": [["named"]],
        "reset": [["reset", "forward"]],
        "set_double": [["set_double", "forward"]] * 2,
    }
    given = plan_stories(archive, [Call("forward", (x,)), Call("named", ("ab",))])
    assert given["named"] == ((Call("named", ("ab",)),),)
    load = loader(archive)
    pair = Pair(load().eval(), load().eval(), (), seed=0)
    for story in (*stories["forward"], *stories["reset"], *stories["set_double"], *given["named"]):
        assert pair.compare(story).error == 0.0
    with pytest.raises(OriginalRaisedError):
        pair.compare(stories["named"][0])
    assert pair.masked.count == 0
    with torch.no_grad():
        pair.shrunk.state.add_(1e-2)
    assert pair.compare(stories["forward"][0]).error > 1e-4
    assert pair.compare(stories["reset"][0]).error == 0.0


def test_what_counts_as_equal() -> None:
    nan, inf = float("nan"), float("inf")
    assert relative_error([torch.tensor([1.0, nan, inf])], [torch.tensor([2.0, nan, inf])]) == 0.5
    assert relative_error([torch.tensor([1.0, nan])], [torch.tensor([nan, 1.0])]) == inf
    assert relative_error([torch.zeros(2)], [torch.zeros(3)]) == inf
    assert value_error([torch.ones(2), {"a": (1, "b")}], [torch.ones(2), {"a": (1, "b")}]) == 0.0
    assert value_error({"a": 1}, {"a": 2}) == inf
    assert value_error((1.0, None), (1.5, None)) == pytest.approx(1 / 3, rel=1e-12)
    assert value_error(True, 1) == inf
    assert value_error(torch.tensor([1j]), torch.tensor([2j])) == 0.5
    # An output that is 0 but for rounding; on its own it would be off by 100 %.
    assert value_error((torch.ones(2), torch.tensor(1e-17)), (torch.ones(2), torch.tensor(0.0))) <= 1e-12
    assert value_error((torch.ones(2), torch.tensor(2e-3)), (torch.ones(2), torch.tensor(1e-3))) == pytest.approx(
        1, rel=1e-6
    )
