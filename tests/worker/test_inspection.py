"""What an inspection says of a model: it adds up, it can be reached, and the same code frozen says the same."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from helpers.models import ConvNet, mlp
from helpers.resnet import CifarResNet
from pruning_server.graph.domain import UnsupportedNodeError
from pruning_server.graph.observe import count_macs
from pruning_server.graph.structure import Structure, analyse, shrink
from pruning_server.spec.inspection import Inspection, LayerInspection
from pruning_server.worker.inspection import batch_size_of, inspect_model


class Joined(nn.Module):
    """Two branches side by side, so that an axis holds the channels of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.out = nn.Conv2d(10, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(20, 6)
        self.cell = nn.LSTM(6, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(self.ids(ids))[0][:, -1])


IMAGE = torch.rand(2, 1, 8, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "conv": (ConvNet, IMAGE),
    "mlp": (mlp, torch.rand(3, 8)),
    "joined": (Joined, torch.rand(2, 3, 4, 4)),
    "recurrent": (Recurrent, torch.zeros(2, 5, dtype=torch.int64)),
    "resnet": (CifarResNet, torch.rand(1, 3, 16, 16)),
}


def scripted(net: nn.Module) -> torch.jit.ScriptModule:
    return loaded(torch.jit.script(net.eval()))


def loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A load of its archive, which shares no code with it."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return torch.jit.load(io.BytesIO(buffer.getvalue())).eval()


def layers(found: Inspection) -> dict[str, LayerInspection]:
    return {layer.name: layer for layer in found.layers}


@pytest.mark.parametrize("name", NETS)
def test_it_adds_up(name: str) -> None:
    make, x = NETS[name]
    module = scripted(make())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = inspect_model(module, (x,))
    assert sum(layer.parameters for layer in found.layers) == sum(p.numel() for p in module.parameters())
    assert sum(layer.macs for layer in found.layers) == count_macs(module, (x,), len(x)).total
    for layer in found.layers:
        assert all(layer.name in found.groups[index].layers for index in layer.group_indices)
        assert 0 < layer.min_parameter_ratio <= 1
        assert (layer.min_parameter_ratio < 1) == bool(layer.group_indices)
    for index, group in enumerate(found.groups):
        assert all(index in layers(found)[name].group_indices for name in group.layers if name in layers(found))
    assert [tuple(spec.shape) for spec in found.inputs] == [tuple(x.shape)]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def farthest(structure: Structure) -> dict[int, range]:
    """Every channel that can go: all of a group where its axes keep others, else all but the first."""
    removal = {number: range(1, group.size) for number, group in enumerate(structure.groups)}
    for number, group in enumerate(structure.groups):
        try:
            structure.cut(removal | {number: range(group.size)})
        except ValueError:
            continue
        removal[number] = range(group.size)
    return removal


@pytest.mark.parametrize("name", NETS)
def test_every_layer_can_go_as_far_as_is_said(name: str) -> None:
    make, x = NETS[name]
    module, subject = scripted(make()), scripted(make())
    found = inspect_model(module, (x,))
    structure = analyse(module, {"forward": [[x]]})
    shrink(subject, structure, farthest(structure))
    shrunk = loaded(subject)
    with torch.no_grad():
        assert shrunk(x).shape == module(x).shape
    left = {key: parameter.numel() for key, parameter in shrunk.named_parameters()}
    for layer in found.layers:
        kept = sum(count for key, count in left.items() if key.rpartition(".")[0] == layer.name)
        assert layer.min_parameter_ratio == pytest.approx(kept / layer.parameters, abs=1e-12)


def test_the_smallest_share_where_two_groups_hold_an_axis() -> None:
    found = layers(inspect_model(scripted(Joined()), (torch.rand(1, 3, 4, 4),)))
    # Each branch keeps one channel, since it would be empty otherwise: 2 of 10 inputs of the last layer.
    assert found["left"].min_parameter_ratio == pytest.approx(1 / 4)
    assert found["right"].min_parameter_ratio == pytest.approx(1 / 6)
    assert found["out"].min_parameter_ratio == pytest.approx((5 * 2 + 5) / (5 * 10 + 5))
    assert found["out"].group_indices == (0, 1)


def test_kinds_and_shapes() -> None:
    found = layers(inspect_model(scripted(ConvNet()), (IMAGE,)))
    assert [(layer.kind, layer.shape) for layer in found.values()] == [
        ("conv", (8, 1, 3, 3)), ("norm", (8,)), ("conv", (16, 8, 3, 3)), ("norm", (16,)), ("linear", (3, 256)),
    ]  # fmt: skip


def test_a_frozen_archive_has_the_same_groups_under_the_names_of_its_constants() -> None:
    plain = inspect_model(scripted(mlp()), (torch.rand(3, 8),))
    frozen = inspect_model(torch.jit.freeze(scripted(mlp())), (torch.rand(3, 8),))
    assert [group.channels for group in frozen.groups] == [group.channels for group in plain.groups] == [32]
    assert sum(layer.parameters for layer in frozen.layers) == sum(layer.parameters for layer in plain.layers)
    assert all(layer.name.startswith("constant_") for layer in frozen.layers)


def test_what_the_analysis_cannot_execute_is_wholly_frozen_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> Structure:
        raise UnsupportedNodeError("prim::Strange cannot be executed")

    monkeypatch.setattr("pruning_server.worker.inspection.analyse", give_up)
    found = inspect_model(scripted(mlp()), (torch.rand(2, 8),))
    assert found.groups == ()
    assert [layer.min_parameter_ratio for layer in found.layers] == [1.0, 1.0]
    assert [layer.macs for layer in found.layers] == [8 * 32, 32 * 3]
    assert found.frozen[0].layers == ("0", "3")
    assert "prim::Strange" in found.frozen[0].reason


def test_memory_that_runs_out_is_no_property_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object, **__: object) -> Structure:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 6000000000 bytes")

    monkeypatch.setattr("pruning_server.worker.inspection.analyse", run_out)
    with pytest.raises(RuntimeError, match="can't allocate"):
        inspect_model(scripted(mlp()), (torch.rand(2, 8),))


def test_the_batch_is_the_axis_that_all_inputs_share() -> None:
    assert batch_size_of((torch.zeros(4, 2), torch.zeros(4), 3)) == 4
    assert batch_size_of((torch.zeros(4, 2), torch.zeros(5))) == 1
    assert batch_size_of((torch.tensor(1.0), 3)) == 1
