"""What the caller's data says of a model: trials are the masked model, gradients are torch's own, nothing stays changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.evidence import planning_of
from pruning_server.pruning.values import Mask
from pruning_server.spec.request import Granularity, StaticStrategy
from pruning_server.worker.evidence import ModelEvidence
from pruning_server.worker.structures import rename

RNG = np.random.default_rng(0)
DATA = {
    "inputs": RNG.normal(size=(80, 3, 8, 8)).astype(np.float32),
    "targets": RNG.integers(0, 4, size=80),
}


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )  # fmt: skip
    net[1].running_mean.uniform_(-0.5, 0.5)
    return net.eval()


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_a_trial_is_the_shrunk_model(way: str, tmp_path: Path) -> None:
    net = _net()
    model = zoo.traced(net, torch.zeros(2, 3, 8, 8)) if way == "traced" else getattr(zoo, way)(net)
    planning = planning_of(tmp_path, model, DATA, strategy=StaticStrategy(granularity=Granularity.CHANNEL))
    evidence, channels = planning.evidence, planning.observed.channels
    assert isinstance(evidence, ModelEvidence)
    assert channels is not None
    removal = {0: (1, 3), 1: (0, 5, 6)}
    got = evidence.trial(removal)
    reference = _net()
    weights = dict(reference.named_parameters())
    with torch.no_grad():
        for one in rename(channels.structure.cut(removal), channels):
            assert one.axis in {0, 1}
        # Consumers of what goes: the second convolution's input, the linear layer's.
        sizes = {group.size: number for number, group in enumerate(channels.groups)}
        first, second = (removal[sizes[size]] for size in (6, 8))
        weights["3.weight"][:, list(first)] = 0
        weights["6.weight"].view(4, 8, 36)[:, list(second)] = 0
        rows = planning.observed.splits.select
        output = reference(torch.from_numpy(DATA["inputs"][rows]))
        loss = nn.functional.cross_entropy(output, torch.from_numpy(DATA["targets"][rows]), reduction="none")
    np.testing.assert_allclose(got.loss, loss.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(evidence.trial({}).loss, evidence.original("select").loss)


def test_a_trial_of_masks_leaves_no_trace(tmp_path: Path) -> None:
    planning = planning_of(tmp_path, zoo.scripted(_net()), DATA)
    evidence = planning.evidence
    before = evidence.original("fit").mean_loss
    removed = torch.ones(4, 8 * 36, dtype=torch.bool)
    empty = evidence.trial({"6.weight": Mask("6.weight", removed)}, renormalize=True)
    assert np.ptp(empty.loss) < 10  # only the bias is left
    assert len(np.unique(np.round(empty.loss, 5))) <= 4
    after = evidence.trial({}, part="fit")
    assert after.mean_loss == before


def test_renormalized_statistics_are_put_back(tmp_path: Path) -> None:
    planning = planning_of(
        tmp_path, zoo.scripted(_net()), DATA, strategy=StaticStrategy(granularity=Granularity.CHANNEL)
    )
    evidence = planning.evidence
    plain = evidence.trial({0: (0,)})
    anew = evidence.trial({0: (0,)}, renormalize=True)
    assert not np.allclose(plain.loss, anew.loss)
    np.testing.assert_array_equal(evidence.trial({0: (0,)}).loss, plain.loss)


def test_gradients_are_torchs_own(tmp_path: Path) -> None:
    planning = planning_of(tmp_path, zoo.scripted(_net()), DATA)
    names = ["0.weight", "6.weight"]
    batches = list(planning.evidence.gradients(names, samples=6, batch_size=2))
    assert len(batches) == 3
    order = np.random.default_rng(0).permutation(len(planning.observed.splits.fit))
    rows = planning.observed.splits.fit[order[:2]]
    net = _net()
    output = net(torch.from_numpy(DATA["inputs"][rows]))
    nn.functional.cross_entropy(output, torch.from_numpy(DATA["targets"][rows])).backward()
    for name in names:
        wanted = dict(net.named_parameters())[name].grad
        torch.testing.assert_close(batches[0][name], wanted, rtol=1e-4, atol=1e-6)


def test_without_targets_gradients_are_of_the_output(tmp_path: Path) -> None:
    planning = planning_of(tmp_path, zoo.scripted(_net()), {"inputs": DATA["inputs"]})
    (gradient,) = planning.evidence.gradients(["6.weight"], samples=4, batch_size=4)
    assert float(gradient["6.weight"].abs().sum()) > 0


def test_calls_show_fit_samples(tmp_path: Path) -> None:
    planning = planning_of(tmp_path, zoo.scripted(_net()), DATA)
    seen: dict[str, int] = {}
    planning.evidence.calls(
        lambda call: seen.update({call.weight: seen.get(call.weight, 0) + len(call.inputs)}), samples=40
    )
    assert seen == {"0.weight": 40, "3.weight": 40, "6.weight": 40}
