"""Refitted kernels give the layer's outputs as well as the inputs that are left allow."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch

from helpers.structures import Toy, chain
from helpers.toy_evidence import NoTrials, ToyEvidence
from pruning_server.graph.capture import LinearCall, capture
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.allocation import refitting
from pruning_server.pruning.allocation.refitting import Refits
from pruning_server.pruning.criteria.base import Basis


def test_least_squares_on_what_is_left() -> None:
    toy = chain([8, 6, 4], seed=1)
    evidence = ToyEvidence(toy)
    found = Refits(dict(enumerate(toy.groups)), Basis(toy.tensors.__getitem__, 0, evidence)).without({0: (1, 4)})
    assert found.keys() == {"1.weight"}
    taken: list[torch.Tensor] = []
    evidence.calls(lambda call: taken.append(call.inputs) if call.weight == "1.weight" else None, samples=32)
    inputs = torch.cat(taken).double()
    kept = [0, 2, 3, 5]
    wanted = torch.linalg.lstsq(inputs[:, kept], inputs @ toy.tensors["1.weight"].double().t()).solution.t()
    torch.testing.assert_close(
        found["1.weight"][:, kept].double(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max())
    )
    assert not found["1.weight"][:, [1, 4]].any()


class Images(NoTrials):
    """Activations of a module on noise, of which channel 1 is twice channel 0."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    def calls(self, visit: Callable[[LinearCall], None], *, samples: int, names: Collection[str] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(max(1, samples // 64)):
            images = torch.randn(16, 4, 6, 6, generator=generator)
            images[:, 1] = 2 * images[:, 0]
            capture(self.module, (images,), visit, names)


@pytest.mark.parametrize("most_features", [refitting.MAX_FEATURES, 8])
@pytest.mark.parametrize("kind", ["plain", "strided", "transposed", "linear"])
def test_a_channel_that_another_one_gives_is_made_up_for(
    kind: str, most_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitting, "MAX_FEATURES", most_features)
    torch.manual_seed(0)
    op: Any = {
        "plain": torch.nn.Conv2d(4, 3, 3, padding=1),
        "strided": torch.nn.Conv2d(4, 3, 3, stride=2),
        "transposed": torch.nn.ConvTranspose2d(4, 3, 2, stride=2),
        "linear": torch.nn.Conv2d(4, 3, 1),
    }[kind]
    module = torch.jit.script(torch.nn.Sequential(op)).eval()
    axis = 0 if kind == "transposed" else 1
    member = Member("0.weight", (), axis, consumer=True, coordinates=((0,), (1,), (2,), (3,)))
    basis = Basis(lambda _: op.weight, 0, Images(module))
    kernel = Refits({0: ChannelGroup(4, (member,))}, basis).without({0: (1,)})["0.weight"]
    assert not kernel.select(axis, 1).any()
    old = op.weight.detach()
    expected = old.select(axis, 0) + 2 * old.select(axis, 1)
    torch.testing.assert_close(kernel.select(axis, 0), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(kernel.select(axis, 2), old.select(axis, 2), rtol=0.02, atol=0.02)


def test_groups_that_no_run_shows_are_not_refitted() -> None:
    toy = chain([8, 6, 5, 4])
    evidence = ToyEvidence(toy, unseen=frozenset({"1.weight"}))
    found = Refits(dict(enumerate(toy.groups)), Basis(toy.tensors.__getitem__, 0, evidence)).without({0: (1,), 1: (0,)})
    assert found.keys() == {"2.weight"}


def test_the_same_seed_gives_the_same_kernels() -> None:
    toy = Toy(chain([8, 6, 4]).tensors, chain([8, 6, 4]).groups)
    one, other = (
        Refits(dict(enumerate(toy.groups)), Basis(toy.tensors.__getitem__, 3, ToyEvidence(toy))).without({0: (2,)})
        for _ in range(2)
    )
    assert torch.equal(one["1.weight"], other["1.weight"])
