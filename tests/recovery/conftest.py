"""A small scripted student with masks, data and a judge, for the tests of recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from helpers.lessons import ScriptedStudent, TensorData
from pruning_server.recovery.lesson import Lesson
from pruning_server.recovery.losses import build_loss
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Score
from pruning_server.recovery.schedule import TrainingPlan
from pruning_server.spec.request import Loss, Task

CLASSES = 3
OBJECTIVE = Objective(task=Task.CLASSIFICATION, loss=Loss.CROSS_ENTROPY, form=TargetForm.LABELS, classes=CLASSES)


@dataclass
class ZeroMasks:
    """Holds the smallest weights of every matrix at zero."""

    tensors: dict[str, torch.Tensor]
    removed: dict[str, torch.Tensor]

    def hold(self) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.masked_fill_(self.removed[name], 0.0)


@dataclass
class Classroom:
    """A lesson and what a test wants to look at."""

    lesson: Lesson
    student: ScriptedStudent
    masks: ZeroMasks
    calls: list[dict[str, object]]

    def zeros_hold(self) -> bool:
        return all(bool((t[self.masks.removed[n]] == 0).all()) for n, t in self.masks.tensors.items())


def make_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, CLASSES)).to(
        dtype
    )


def make_data(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 8, generator=generator)
    return inputs, inputs[:, :6].reshape(samples, CLASSES, 2).sum(dim=2).argmax(dim=1)


def trained_net() -> nn.Module:
    net = make_net()
    inputs, targets = make_data(400, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small nets gain nothing from threads, and lose much where several tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained_state() -> dict[str, torch.Tensor]:
    return trained_net().state_dict()


@pytest.fixture
def classroom(trained_state: dict[str, torch.Tensor]) -> Callable[..., Classroom]:
    """Makes a lesson on a net pruned to a sparsity."""

    def make(
        *,
        sparsity: float = 0.8,
        dtype: torch.dtype = torch.float32,
        plan: TrainingPlan | None = None,
        objective: Objective = OBJECTIVE,
        loss_module: nn.Module | None = None,
        exact_batch: int | None = None,
    ) -> Classroom:
        net = make_net(dtype)
        net.load_state_dict(trained_state)
        module = torch.jit.script(net)
        inputs, targets = make_data(200, seed=1)
        select_inputs, select_targets = make_data(100, seed=2)
        inputs, select_inputs = inputs.to(dtype), select_inputs.to(dtype)
        with torch.no_grad():
            reference = module.eval()(inputs)
        student = ScriptedStudent(module, exact_batch)
        matrices = {name: t for name, t in module.named_parameters() if t.ndim == 2}
        removed = {}
        for name, tensor in matrices.items():
            mask = torch.zeros(tensor.numel(), dtype=torch.bool)
            mask[tensor.detach().abs().flatten().topk(round(sparsity * tensor.numel()), largest=False).indices] = True
            removed[name] = mask.reshape(tensor.shape)
        masks = ZeroMasks(matrices, removed)
        masks.hold()

        def judge() -> Score:
            assert not module.training
            with torch.no_grad():
                output = module(select_inputs).float()
            hits = (output.argmax(dim=1) == select_targets).float().mean()
            return Score(float(hits), float(nn.functional.cross_entropy(output, select_targets)))

        calls: list[dict[str, object]] = []
        lesson = Lesson(
            student=student,
            data=TensorData(inputs, None if objective.form is TargetForm.NONE else targets, reference),
            judge=judge,
            masks=masks,
            objective=objective,
            loss=build_loss(objective, loss_module),
            plan=plan
            or TrainingPlan(
                epochs=8, batch_size=32, learning_rate=None, weight_decay=0.0, patience_epochs=None, seed=0
            ),
            progress=lambda **call: calls.append(call),
        )
        return Classroom(lesson, student, masks, calls)

    return make
