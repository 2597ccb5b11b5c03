"""Removed weights are exactly 0 and stay so, whatever an optimizer does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers import zoo
from pruning_server.graph.modules import find_weights
from pruning_server.pruning import masks
from pruning_server.pruning.selection import Selection, select
from pruning_server.pruning.strategies import get
from pruning_server.pruning.values import Mask, PruningPlan
from pruning_server.spec.request import Scope, StaticStrategy, Target, TargetKind

TOKENS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))

Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: list[Optimizer] = [
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
    lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, momentum=0.9),
]


def prepared() -> tuple[torch.jit.ScriptModule, Selection, PruningPlan]:
    torch.manual_seed(2)
    module = zoo.scripted(zoo.Text())
    selection = select(find_weights(module), include_biases=False, include_norms=False, exclude_layers=())
    target = Target(kind=TargetKind.SPARSITY, value=0.8)
    return module, selection, get("static").plan(selection.inputs(module), StaticStrategy(scope=Scope.LAYER), target, 0)


def test_applying_zeroes_exactly_the_removed_and_all_their_aliases() -> None:
    module, selection, plan = prepared()
    tensors = selection.tensors(module)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    assert masks.count_violations(tensors, plan.masks)
    masks.apply(tensors, plan.masks)
    assert masks.count_violations(tensors, plan.masks) == {}
    for name, mask in plan.masks.items():
        assert torch.equal(tensors[name][~mask.removed], before[name][~mask.removed])
    assert torch.equal(module.output.weight, module.words.weight)
    assert torch.equal(module.lstm._flat_weights[0], module.lstm.weight_ih_l0)
    assert (zoo.reload(module).output.weight == 0).sum() == plan.masks["words.weight"].removed_count


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_zeros_hold_through_training(make: Optimizer) -> None:
    module, selection, plan = prepared()
    tensors = selection.tensors(module)
    holder = masks.MaskHolder(tensors, plan.masks)
    optimizer = make(list(module.parameters()))
    holder.hold()
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for _ in range(4):
        optimizer.zero_grad()
        module(TOKENS).square().sum().backward()
        optimizer.step()
        assert masks.count_violations(tensors, plan.masks)  # the step alone would have moved them
        holder.hold()
        assert masks.count_violations(tensors, plan.masks) == {}
    assert all(not torch.equal(tensors[name], kept[name]) for name in tensors)


def test_values_that_are_not_finite_do_not_survive_under_the_mask() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0, 1.0])
    mask = Mask("a", torch.tensor([True, True, True, False]))
    masks.apply({"a": tensor}, {"a": mask})
    assert tensor.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert not torch.signbit(tensor).any()


def test_a_mask_without_its_tensor_or_of_another_shape_is_an_error() -> None:
    mask = Mask("a", torch.ones(2, dtype=torch.bool))
    with pytest.raises(KeyError):
        masks.apply({}, {"a": mask})
    with pytest.raises(ValueError, match="shape"):
        masks.apply({"a": torch.ones(2, 1)}, {"a": mask})
    with pytest.raises(ValueError, match="shape"):
        masks.count_violations({"a": torch.ones(3)}, {"a": mask})
