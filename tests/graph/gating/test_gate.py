"""The gate: the same model with its channels in another order, a core of views, and rows that only the core saw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pruning_server.graph import ir
from pruning_server.graph.gating.core import find_core
from pruning_server.graph.gating.insertion import NotGateableError, insert_gate, is_gated, set_threshold
from pruning_server.graph.gating.ordering import after, find_permutations, reorder
from pruning_server.graph.structure import Structure, analyse, shrink
from pruning_server.graph.surgery.cut import AxisCut

BATCH = 12
EXACT = 1e-6


class Net(nn.Module):
    """A convolution with normalization that is flattened, branches that are concatenated, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Linear(16 * 16, 96)
        self.left = nn.Linear(96, 64)
        self.right = nn.Linear(96, 72)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(136, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(x))).flatten(1)
        hidden = torch.relu(self.wide(hidden))
        joined = torch.cat([torch.relu(self.left(hidden)), torch.tanh(self.right(hidden))], dim=1)
        return self.head(self.drop(joined))


def make(kind: str) -> torch.jit.ScriptModule:
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 1, 4, 4))
    net.eval()
    if kind == "traced":
        return torch.jit.trace(net, torch.randn(2, 1, 4, 4))
    return torch.jit.freeze(torch.jit.script(net)) if kind == "frozen" else torch.jit.script(net)


def samples() -> torch.Tensor:
    return torch.randn(BATCH, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def analysed(module: torch.jit.ScriptModule) -> Structure:
    inputs = samples()
    return analyse(ir.duplicate(module).eval(), {"forward": [(inputs[:2],), (inputs[:3],)]}, batch_size=2)


def shuffled(module: torch.jit.ScriptModule, structure: Structure) -> torch.jit.ScriptModule:
    generator = torch.Generator().manual_seed(2)
    order = {n: torch.randperm(group.size, generator=generator).tolist() for n, group in enumerate(structure.groups)}
    copy = ir.duplicate(module)
    reorder(copy, find_permutations(structure, order))
    return ir.duplicate(copy)


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_another_order_of_channels_is_the_same_model(kind: str) -> None:
    module = make(kind)
    structure = analysed(module)
    assert len(structure.groups) >= 3
    inputs = samples()
    torch.testing.assert_close(shuffled(module, structure)(inputs), module(inputs), atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_each_sample_gets_the_core_or_the_whole(kind: str) -> None:
    module = make(kind)
    structure = analysed(module)
    ordered = shuffled(module, structure)
    core = find_core(structure, range(len(structure.groups)), 0.5)
    small, gated = ir.duplicate(ordered), ir.duplicate(ordered)
    shrink(small, structure, core)
    insert_gate(gated, structure, core, 0.0, [0])
    small, gated = ir.duplicate(small).eval(), ir.duplicate(gated).eval()
    inputs = samples()
    alone, whole = small(inputs).detach(), module(inputs).detach()
    best = alone.topk(2, dim=1).values
    margins = best[:, 0] - best[:, 1]
    # Between two samples, so that rounding decides nothing.
    middle = float(margins.sort().values[BATCH // 2 - 1 : BATCH // 2 + 1].mean())
    for threshold in (math.inf, middle, -math.inf):
        set_threshold(gated, threshold)
        wanted = torch.where((margins >= threshold)[:, None], alone, whole)
        torch.testing.assert_close(gated(inputs), wanted, atol=EXACT, rtol=0)
        one_by_one = torch.cat([gated(inputs[row : row + 1]) for row in range(BATCH)])
        torch.testing.assert_close(one_by_one, wanted, atol=EXACT, rtol=0)
    assert int((margins >= middle).sum()) == BATCH // 2
    assert gated(inputs[:0]).shape == (0, 5)


def test_a_gated_model_trains_as_before_and_keeps_its_names() -> None:
    module = make("scripted")
    structure = analysed(module)
    gated = ir.duplicate(module)
    insert_gate(gated, structure, find_core(structure, range(len(structure.groups)), 0.25), -math.inf, [0])
    gated = ir.duplicate(gated)
    assert {name: tuple(one.shape) for name, one in gated.state_dict().items()} == {
        name: tuple(one.shape) for name, one in module.state_dict().items()
    }
    inputs = samples()
    outputs, gradients = [], []
    for one in (module.train(), gated.train()):
        torch.manual_seed(4)
        outputs.append(one(inputs))
        outputs[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=EXACT, rtol=0)
    assert torch.equal(module.norm.running_mean, gated.norm.running_mean)
    assert int(gated.norm.num_batches_tracked) == int(module.norm.num_batches_tracked)


def test_numbers_that_are_not_finite_never_pass_the_gate() -> None:
    module = make("scripted")
    structure = analysed(module)
    gated = ir.duplicate(module)
    insert_gate(gated, structure, find_core(structure, range(len(structure.groups)), 0.25), -1.0, [0])
    gated = ir.duplicate(gated).eval()
    inputs = samples()
    inputs[0] = math.nan
    assert bool(gated(inputs)[0].isnan().all())
    torch.testing.assert_close(gated(inputs)[0], module(inputs)[0], equal_nan=True)


def test_the_core_is_views_and_nothing_is_stored_twice() -> None:
    module = make("scripted")
    structure = analysed(module)
    gated = ir.duplicate(module)
    insert_gate(gated, structure, find_core(structure, range(len(structure.groups)), 0.25), 1.0, [0])
    kinds = [node.kind() for node in ir.walk(ir.inlined_copy(gated, "forward"))]
    assert "aten::slice" in kinds
    assert "aten::cat" in kinds
    assert not {"aten::gather", "aten::take", "aten::index"} & set(kinds)
    assert len(gated.save_to_buffer()) < 1.2 * len(module.save_to_buffer()) + 8192


def test_groups_that_lie_in_several_blocks_stay_whole() -> None:
    module = make("scripted")
    structure = analysed(module)
    groups = {number: {one.tensor for one in group.members} for number, group in enumerate(structure.groups)}
    joined = {number for number, names in groups.items() if "head.weight" in names}
    core = find_core(structure, list(groups), 0.25)
    # The head reads both branches: their first parts are two blocks of one axis.
    assert len(joined) == 2
    assert not joined & set(core)
    assert set(core) == set(groups) - joined


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(4, 32), nn.Linear(32, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.second(torch.relu(self.first(x)))


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.first(x))
        return self.second(hidden), self.second(hidden)


@pytest.mark.parametrize(("net", "why"), [(Counting(), "twice"), (Pair(), "one tensor")])
def test_what_cannot_be_gated_is_refused_with_a_reason(net: nn.Module, why: str) -> None:
    module = ir.duplicate(torch.jit.script(net.eval()))
    inputs = torch.randn(3, 4)
    structure = analyse(ir.duplicate(module), {"forward": [(inputs[:2],), (inputs,)]}, batch_size=2)
    before = module(inputs)
    with pytest.raises(NotGateableError, match=why):
        insert_gate(module, structure, find_core(structure, range(len(structure.groups)), 0.5), 0.0, [0])
    assert not is_gated(module)
    torch.testing.assert_close(ir.duplicate(module)(inputs), before, atol=0, rtol=0)


def test_a_gate_is_not_put_on_a_gate() -> None:
    # A load of its own: modules that were scripted in one process share their types.
    module = ir.duplicate(make("scripted"))
    structure = analysed(module)
    core = find_core(structure, range(len(structure.groups)), 0.5)
    insert_gate(module, structure, core, 0.0, [0])
    with pytest.raises(NotGateableError, match="already"):
        insert_gate(module, structure, core, 0.0, [0])


def test_an_order_must_be_a_permutation() -> None:
    structure = analysed(make("scripted"))
    with pytest.raises(ValueError, match="permutation"):
        find_permutations(structure, {0: [0] * structure.groups[0].size})


def test_a_cut_and_then_an_order_name_the_original_channels() -> None:
    cut = (AxisCut("a", (), 0, 5, (0, 2, 4), ()),)
    order = (AxisCut("a", (), 0, 3, (2, 0, 1), ()), AxisCut("b", (), 1, 2, (1, 0), ()))
    assert after(cut, order) == (AxisCut("a", (), 0, 5, (4, 0, 2), ()), AxisCut("b", (), 1, 2, (1, 0), ()))
