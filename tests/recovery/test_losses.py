"""The losses: torch's own values, per sample and on the mean, for logits, probabilities and half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.losses import (
    BuiltinLoss,
    ModuleLoss,
    build_loss,
    check_loss,
    distillation,
    shape_target,
)
from pruning_server.recovery.objective import Link, Objective, TargetForm
from pruning_server.spec.request import Loss, Task

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(7, 3, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])
VALUES = torch.rand(7, 3, generator=GENERATOR)
ONES = (VALUES > 0.5).float()

REFERENCES = {
    Loss.CROSS_ENTROPY: (LABELS, functional.cross_entropy(LOGITS, LABELS)),
    Loss.BCE_WITH_LOGITS: (ONES, functional.binary_cross_entropy_with_logits(LOGITS, ONES)),
    Loss.MSE: (VALUES, functional.mse_loss(LOGITS, VALUES)),
    Loss.L1: (VALUES, functional.l1_loss(LOGITS, VALUES)),
}


def objective(loss: Loss | None, form: TargetForm = TargetForm.VALUES, link: Link = Link.IDENTITY) -> Objective:
    return Objective(task=Task.REGRESSION, loss=loss, form=form, link=link)


@pytest.mark.parametrize("kind", Loss)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 0.02)])
def test_the_mean_is_torchs_and_the_mean_of_the_samples(kind: Loss, dtype: torch.dtype, tolerance: float) -> None:
    target, expected = REFERENCES[kind]
    loss = BuiltinLoss(kind)
    mean, each = loss.mean(LOGITS.to(dtype), target), loss.per_sample(LOGITS.to(dtype), target)
    assert each.shape == (7,)
    torch.testing.assert_close(mean.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(each.mean().float(), expected, rtol=tolerance, atol=tolerance)


def test_probabilities_give_the_loss_of_their_logits() -> None:
    softmax = BuiltinLoss(Loss.CROSS_ENTROPY, Link.PROBABILITIES).mean(LOGITS.softmax(dim=1), LABELS)
    torch.testing.assert_close(softmax, REFERENCES[Loss.CROSS_ENTROPY][1], rtol=1e-5, atol=1e-6)
    sigmoid = BuiltinLoss(Loss.BCE_WITH_LOGITS, Link.PROBABILITIES).mean(LOGITS.sigmoid(), ONES)
    torch.testing.assert_close(sigmoid, REFERENCES[Loss.BCE_WITH_LOGITS][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain_probabilities_have_finite_losses_and_gradients(value: float) -> None:
    for kind, target in ((Loss.CROSS_ENTROPY, torch.tensor([0])), (Loss.BCE_WITH_LOGITS, torch.tensor([[1.0, 0.0]]))):
        output = torch.tensor([[value, 1 - value]], requires_grad=True)
        loss = BuiltinLoss(kind, Link.PROBABILITIES).mean(output, target)
        loss.backward()
        assert torch.isfinite(loss)
        assert bool(torch.isfinite(output.grad).all())


@pytest.mark.parametrize(("loss", "form"), [(kind, TargetForm.VALUES) for kind in (Loss.MSE, Loss.L1, Loss.BCE_WITH_LOGITS)] + [(Loss.CROSS_ENTROPY, TargetForm.LABELS)])  # fmt: skip
def test_distillation_is_least_at_the_originals_output(loss: Loss, form: TargetForm) -> None:
    wanted = objective(loss, form)
    same = distillation(LOGITS, LOGITS, wanted)
    for seed in range(3):
        other = LOGITS + torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(seed))
        assert distillation(other, LOGITS, wanted) > same + 1e-4


def test_a_callers_module_is_not_distilled() -> None:
    assert distillation(LOGITS, LOGITS, objective(None)) is None


@pytest.mark.parametrize(
    ("form", "stored", "expected"),
    [
        (TargetForm.LABELS, torch.tensor([[2], [0]]), torch.tensor([2, 0])),
        (TargetForm.ONE_HOT, torch.tensor([[0, 0, 1], [1, 0, 0]]), torch.tensor([2, 0])),
        (TargetForm.VALUES, torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1.0, 2, 3], [4, 5, 6]])),
        (TargetForm.NONE, None, torch.zeros(2, 3)),
        (TargetForm.LABELS, None, torch.tensor([0, 0])),
    ],
)
def test_targets_take_the_form_that_the_loss_wants(form, stored, expected) -> None:
    shaped = shape_target(stored, torch.zeros(2, 3), objective(Loss.MSE, form))
    assert shaped.dtype == expected.dtype
    assert torch.equal(shaped, expected)


def test_columns_and_rows_of_single_values_are_the_same() -> None:
    shaped = shape_target(torch.tensor([1.0, 2.0]), torch.zeros(2, 1), objective(Loss.MSE))
    assert shaped.shape == (2, 1)


class Returns(nn.Module):
    """Returns what it was made with."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> object:  # noqa: ARG002
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    "value", [torch.ones(3), torch.ones((), dtype=torch.int64), 1.0, None, (torch.ones(()),), ValueError("no")], ids=str
)
def test_a_module_must_return_a_scalar(value: object) -> None:
    with pytest.raises(JobFailureError) as caught:
        ModuleLoss(Returns(value)).mean(LOGITS, VALUES)
    assert caught.value.reason is Reason.LOSS_UNSUITABLE
    assert "scalar" in caught.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_must_be_finite_for_the_original(value: float) -> None:
    with pytest.raises(JobFailureError) as caught:
        check_loss(ModuleLoss(Returns(torch.tensor(value))), LOGITS, VALUES)
    assert caught.value.reason is Reason.LOSS_NOT_FINITE


def test_a_module_is_called_on_each_sample_alone() -> None:
    class Mean(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (output - target).abs().mean().reshape(1)

    loss = build_loss(objective(None), Mean())
    torch.testing.assert_close(
        loss.per_sample(LOGITS, VALUES), BuiltinLoss(Loss.L1).per_sample(LOGITS, VALUES), rtol=1e-6, atol=1e-7
    )


# --- Pixels and tokens ------------------------------------------------------------------------------------------------


def elementwise(axis: int | None, link: Link = Link.IDENTITY) -> Objective:
    kind = Loss.BCE_WITH_LOGITS if axis is None else Loss.CROSS_ENTROPY
    return Objective(
        task=Task.SEGMENTATION, loss=kind, form=TargetForm.ELEMENTS, link=link, classes=3, class_axis=axis,
        ignored=(-100, 255),
    )  # fmt: skip


@pytest.mark.parametrize("axis", [1, 3])
def test_the_loss_of_elements_is_that_of_torch(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(4, 3, 5, 6, generator=generator)
    stored = torch.randint(3, (4, 1, 5, 6), generator=generator)
    stored[0, 0, 0] = 255
    stored[1, 0, :, 1] = -100
    stored[2] = -100
    given = output if axis == 1 else output.movedim(1, 3)
    objective = elementwise(axis)
    target = shape_target(stored, given, objective)
    assert target.shape == (4, 5, 6)
    assert set(target.unique().tolist()) == {-100, 0, 1, 2}
    loss = build_loss(objective, None)
    wanted = functional.cross_entropy(output, target)
    assert loss.mean(given, target) == pytest.approx(float(wanted), rel=1e-6)
    each = [float(functional.cross_entropy(output[i : i + 1], target[i : i + 1])) for i in (0, 1, 3)]
    assert loss.per_sample(given, target)[[0, 1, 3]].tolist() == pytest.approx(each, rel=1e-5)
    # A sample of which nothing counts costs nothing.
    assert loss.per_sample(given, target)[2] == 0.0


def test_the_loss_of_yes_or_no_for_each_element_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    output, stored = torch.randn(4, 1, 5, generator=generator), torch.randint(2, (4, 5), generator=generator)
    stored[:, 0] = 255
    output[:, :, 0] = float("inf")
    objective = elementwise(None)
    target = shape_target(stored, output, objective)
    wanted = functional.binary_cross_entropy_with_logits(output[:, 0, 1:], stored[:, 1:].float())
    assert build_loss(objective, None).mean(output, target) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("axis", [1, 2, None])
def test_distillation_leaves_out_what_does_not_count(axis: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    reference = torch.randn(4, *((3, 6) if axis == 1 else (6, 3) if axis == 2 else (6,)), generator=generator)
    objective = elementwise(axis)
    target = torch.zeros(4, 6, dtype=torch.int64)
    target[:, 3:] = -100
    changed = reference.clone()
    place = (slice(None), slice(None), slice(3, None)) if axis == 1 else (slice(None), slice(3, None))
    changed[place] *= -3
    least = distillation(reference, reference, objective, target)
    assert least is not None
    assert distillation(changed, reference, objective, target) == pytest.approx(float(least), abs=1e-6)
    without = distillation(changed, reference, objective)
    assert without is not None
    assert float(without) > float(least) + 0.01


def test_what_the_original_chooses_is_the_target_where_there_is_none() -> None:
    reference = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    chosen = Objective(task=Task.AGREEMENT, loss=Loss.BCE_WITH_LOGITS, form=TargetForm.VALUES)
    assert shape_target(None, reference, chosen).tolist() == [[0.0, 1.0], [1.0, 0.0]]
