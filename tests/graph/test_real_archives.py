"""Archives that other people made."""

from __future__ import annotations

import pytest
import torch

from helpers import zoo
from helpers.resnet import trained_resnet
from helpers.shared_data import shared_file
from pruning_server.evaluation.cost import count_parameters
from pruning_server.graph.modules import KERNEL_KINDS, StateGuard, find_weights, get_tensor
from pruning_server.graph.observe import count_macs
from pruning_server.graph.training import thaw

pytestmark = pytest.mark.shared_data

ARCHIVES = [
    pytest.param("policy_go2.pt", (torch.zeros(2, 45),), 4, 188_416, id="policy"),
    pytest.param("policy_go2_himloco.pt", (torch.zeros(2, 270),), 7, 242_112, id="two-nets"),
    pytest.param("wtw_adaptation.pt", (torch.zeros(2, 2100),), 3, 570_624, id="adaptation"),
    pytest.param("policy_g1_loco_lstm.pt", (torch.zeros(1, 96),), 6, 528_000, id="lstm"),
    pytest.param("silero_vad.pt", (torch.zeros(1, 512), 16000), 16, 679_552, id="voice"),
]


@pytest.mark.parametrize(("name", "inputs", "kernels", "macs"), ARCHIVES)
def test_kernels_and_macs(name: str, inputs: tuple[object, ...], kernels: int, macs: int) -> None:
    module = torch.jit.load(str(shared_file(f"torchscript/{name}")))
    found = find_weights(module)
    assert len([weight for weight in found.weights if weight.kind in KERNEL_KINDS]) == kernels
    assert found.frozen == ()
    assert {parameter.data_ptr() for parameter in module.parameters()} <= {
        get_tensor(module, weight.name).data_ptr() for weight in found.weights
    }
    assert count_macs(module, inputs, inputs[0].shape[0]).total == macs


@pytest.mark.parametrize(("name", "inputs", "kernels", "macs"), ARCHIVES)
def test_runs_under_the_guard_repeat(name: str, inputs: tuple[object, ...], kernels: int, macs: int) -> None:  # noqa: ARG001
    module = torch.jit.load(str(shared_file(f"torchscript/{name}"))).eval()
    guard = StateGuard(module)
    inputs = (torch.rand(inputs[0].shape, generator=torch.Generator().manual_seed(0)), *inputs[1:])
    outputs = []
    for _ in range(3):
        with guard, torch.no_grad():
            outputs.append(module(*inputs))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-6, atol=1e-6)


def test_a_model_without_weights_has_none() -> None:
    assert find_weights(torch.jit.load(str(shared_file("torchscript/tchrs_foo1.pt")))).weights == ()


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_resnet_20(way: str) -> None:
    net = trained_resnet(20)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = zoo.traced(net, images) if way == "traced" else getattr(zoo, way)(net)
    thawed = thaw(module)
    kernels = [weight for weight in find_weights(thawed).weights if weight.kind in KERNEL_KINDS]
    assert len(kernels) == 20
    assert sum(weight.numel for weight in kernels) == sum(p.numel() for p in net.parameters() if p.dim() > 1)
    assert count_macs(module, (images,), 2).total == 40_551_040
    if way != "frozen":  # freezing folds the batch norms into biases
        assert count_parameters(module).parameters == 269_722
    with torch.no_grad():
        torch.testing.assert_close(thawed(images), net(images), rtol=1e-4, atol=1e-4)
