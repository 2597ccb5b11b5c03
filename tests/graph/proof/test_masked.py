"""The masked model: what it holds where, and that random values of both models belong together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.proving import SmallNet, loader, shrunk, small_archive
from pruning_server.graph.proof.masked import CutMismatchError, changed_tensors, mask, randomize
from pruning_server.graph.proof.stored import adapted, counterparts, enumerate_constants, find_stored
from pruning_server.graph.surgery.cut import AxisCut, Cut

X = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
REMOVED = {("inner.weight", 0): [1, 5, 6], ("first.weight", 0): [0, 3]}


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_kept_coordinates_are_the_shrunk_ones_and_consumers_of_removed_ones_are_zero(way: str) -> None:
    archive = small_archive(way)
    smaller, cut = shrunk(archive, X, REMOVED)
    # As recovery would leave them.
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.add_(1.0)
    masked = zoo.reload(archive)
    mask(masked, smaller, cut)
    before, after, small = archive.state_dict(), masked.state_dict(), smaller.state_dict()
    inner, outer = [0, 2, 3, 4, 7, 8, 9, 10, 11], [1, 2, 4, 5, 6, 7]
    assert torch.equal(after["back.weight"][outer][:, inner], small["back.weight"])
    assert torch.equal(after["back.weight"][:, [1, 5, 6]], torch.zeros(8, 3, 1, 1))
    assert torch.equal(after["inner.weight"][inner][:, outer], small["inner.weight"])
    assert torch.equal(after["inner.weight"][:, [0, 3]], torch.zeros(12, 2, 3, 3))
    # Removed channels keep their biases and statistics, so that a leak would show.
    for name in ("first.bias", "norm.bias", "norm.running_mean"):
        assert torch.equal(after[name][[0, 3]], before[name][[0, 3]])
        assert float(after[name][[0, 3]].abs().min()) > 1e-3
    assert torch.equal(after["head.bias"], small["head.bias"])


def test_names_and_shapes_must_fit() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, REMOVED)
    wrong: dict[str, Cut] = {
        "shape": tuple(one for one in cut if (one.tensor, one.axis) != ("back.weight", 1)),
        "no tensor": (*cut, AxisCut("nobody", (), 0, 3, (0,), ())),
        "length": tuple(replace(one, size=9) if one.tensor == "first.bias" else one for one in cut),
        "axes": (*cut, AxisCut("head.bias", (), 1, 4, (0,), ())),
    }
    for said, one in wrong.items():
        with pytest.raises(CutMismatchError, match=said):
            mask(zoo.reload(archive), smaller, one)


def test_random_values_of_the_shrunk_model_are_slices_of_the_masked_ones() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, REMOVED)
    masked, small = (adapted(zoo.reload(one), torch.float64) for one in (archive, smaller))
    mask(masked, small, cut)
    randomize(masked, small, cut, seed=4)
    assert changed_tensors(masked, small, cut) == ()
    state = masked.state_dict()
    assert {tensor.dtype for name, tensor in state.items() if "tracked" not in name} == {torch.float64}
    assert torch.equal(state["back.weight"][:, [1, 5, 6]], torch.zeros(8, 3, 1, 1, dtype=torch.float64))
    for name in ("norm.running_var", "norm.weight", "scale"):  # the layer scale was 1e-6
        assert 0.5 <= float(state[name].min()) <= float(state[name].max()) <= 1.5
    assert float(state["norm.running_mean"].min()) < 0 < float(state["norm.running_mean"].max())
    again, other = (adapted(zoo.reload(one), torch.float64) for one in (archive, smaller))
    mask(again, other, cut)
    randomize(again, other, cut, seed=4)
    assert all(torch.equal(one, state[name]) for name, one in again.state_dict().items())


def test_surgery_that_confuses_coordinates_is_seen() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, REMOVED)
    assert changed_tensors(archive, smaller, cut) == ()
    with torch.no_grad():
        smaller.back.weight.copy_(smaller.back.weight[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]])
    assert changed_tensors(archive, smaller, cut) == ("back.weight",)


class Tied(nn.Module):
    """One memory under three names, one of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(5, 4))
        self.register_buffer("same", self.table.detach())
        self.tables = [self.table.detach()]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.t() + (x @ self.tables[0].t()) * self.same[0, 0]


def test_memory_that_is_shared_stays_shared() -> None:
    archive = zoo.scripted(Tied())
    masked, other = loader(archive)(), loader(archive)()
    wide = adapted(masked, torch.float64)
    small = adapted(other, torch.float64)
    mask(wide, small, ())
    randomize(wide, small, (), seed=0)
    for module in (wide, small):
        (stored,) = find_stored(module)
        assert set(stored.names) == {"table", "same", "tables.0"}
        assert stored.main.dtype == torch.float64
        assert all(torch.equal(tensor, stored.main) for tensor in stored.tensors.values())
    assert changed_tensors(wide, small, ()) == ()


def test_constants_of_the_code_are_masked_and_paired_by_what_reads_them() -> None:
    net = SmallNet().eval()
    frozen = zoo.frozen(net)
    count = len(enumerate_constants(frozen))
    assert count >= 8
    changed = loader(frozen)()
    with torch.no_grad():
        for tensors in enumerate_constants(changed):
            tensors[0].mul_(2.0)
    changed = zoo.reload(changed)
    masked = loader(frozen)()
    mask(masked, changed, ())
    pairs = counterparts(masked, changed)
    assert len([name for name in pairs if name.startswith("constant")]) == count
    assert changed_tensors(masked, changed, ()) == ()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        torch.testing.assert_close(zoo.reload(masked)(X), changed(X), rtol=0.0, atol=0.0)
