"""What is pruned, the caller's sets, and the images that nothing but the final judgement sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers.models import fitted
from helpers.resnet import MEAN, STD, trained_resnet
from helpers.shared_data import SHARED_DATA
from pruning_server.spec.request import Layout, Preprocessing

CALLER, FIT, SELECT = 5_000, 4_400, 400
JUDGED_BATCH = 500

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A trained net, a caller's set, and what the result is judged on.

    Attributes:
        net: with its source, in evaluation mode.
        shape: of one input as the net takes it.
        preprocessing: from stored inputs to those.
        caller: arrays of the whole caller's set, without split marks.
        inputs, targets: what is judged on, as the net takes it.
    """

    name: str
    net: nn.Module
    shape: tuple[int, ...]
    preprocessing: Preprocessing
    caller: Arrays
    inputs: torch.Tensor
    targets: torch.Tensor

    def save(self, path: Path) -> Path:
        """Writes the net as TorchScript, which is all that the service gets."""
        torch.jit.script(self.net).save(str(path))
        return path

    def accuracy(self, model: torch.jit.ScriptModule | nn.Module) -> float:
        """Percent of the judged samples that are right, by plain torch."""
        model.eval()
        with torch.no_grad():
            classes = torch.cat([model(batch).argmax(dim=1) for batch in self.inputs.split(JUDGED_BATCH)])
        return float((classes == self.targets).double().mean()) * 100


def cifar_resnet(depth: int) -> Task:
    """The maintainers' CIFAR-10 ResNet; the first 5,000 test images are the caller's, the others judge."""
    found = np.load(SHARED_DATA / "cifar10_test.npz")
    images, labels = found["images"], found["labels"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    judged = torch.from_numpy(images[CALLER:]).permute(0, 3, 1, 2).float() / 255
    return Task(
        name=f"ResNet-{depth}",
        net=trained_resnet(depth),
        shape=(3, 32, 32),
        preprocessing=Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC),
        caller={"inputs": images[:CALLER], "targets": labels[:CALLER]},
        inputs=((judged - mean) / std).contiguous(),
        targets=torch.from_numpy(labels[CALLER:]),
    )


def digits_net() -> Task:
    """A small convolutional net trained on 800 of scikit-learn's digits; 500 others are the caller's, 497 judge."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images, labels = digits.images[order].astype(np.float32)[:, None] / 16, digits.target[order].astype(np.int64)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip
    trained = fitted(net, images[:800], labels[:800], epochs=20)
    return Task(
        name="digits net",
        net=trained.eval(),
        shape=(1, 8, 8),
        preprocessing=Preprocessing(),
        caller={"inputs": images[800:1300], "targets": labels[800:1300]},
        inputs=torch.from_numpy(images[1300:]),
        targets=torch.from_numpy(labels[1300:]),
    )


def with_marks(caller: Arrays, seed: int) -> Arrays:
    """The whole set with split marks drawn by the seed: 4,400 fit, 400 select, 200 report of 5,000."""
    count = len(caller["targets"])
    marks = np.full(count, 2, dtype=np.uint8)
    order = np.random.default_rng(seed).permutation(count)
    fit = round(count * FIT / CALLER)
    marks[order[:fit]] = 0
    marks[order[fit : fit + round(count * SELECT / CALLER)]] = 1
    return {**caller, "split": marks}


def sample_of(caller: Arrays, count: int, seed: int) -> Arrays:
    """Some of the set, drawn by the seed; the service splits them itself."""
    rows = np.random.default_rng(seed).permutation(len(caller["targets"]))[:count]
    return {name: values[rows] for name, values in caller.items()}
