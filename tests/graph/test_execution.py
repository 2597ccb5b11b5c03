"""The executor computes what torch's own interpreter computes, and leaves the same state."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.shared_data import shared_file
from pruning_server.graph import ir
from pruning_server.graph.domain import Domain, ModelRaisedError, UnsupportedNodeError
from pruning_server.graph.execution import Executor, run_method
from pruning_server.graph.modules import StateGuard
from pruning_server.graph.program import Step, compile_graph


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])

CASES = [
    pytest.param(zoo.Functional, (rand(3, 4),), id="functional"),
    pytest.param(zoo.Views, (rand(3, 8),), id="views"),
    pytest.param(zoo.Products, (rand(4, 4),), id="products"),
    pytest.param(zoo.Convolutions, (rand(2, 2, 5),), id="convolutions"),
    pytest.param(zoo.Text, (TOKENS,), id="text"),
    pytest.param(zoo.Switch, (rand(3, 4), True), id="switch"),
    pytest.param(zoo.Looped, (rand(3, 4), 5), id="looped"),
    pytest.param(zoo.Stateful, (rand(1, 3),), id="stateful"),
    pytest.param(zoo.Frozenish, (rand(4, 4),), id="frozenish"),
    pytest.param(zoo.Residual, (rand(2, 3, 8, 8),), id="residual"),
]


def compare(module: torch.jit.ScriptModule, inputs: tuple[Any, ...], method: str = "forward") -> None:
    guard = StateGuard(module)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        with guard:
            expected = getattr(module, method)(*inputs)
        with guard:
            result = run_method(module, inputs, method)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "inputs"), CASES)
@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_same_outputs(kind: type[nn.Module], inputs: tuple[Any, ...], way: str) -> None:
    if way == "traced" and not all(isinstance(value, Tensor) for value in inputs):
        pytest.skip("only tensors can be traced")
    torch.manual_seed(0)
    net = kind().eval()
    module = zoo.traced(net, *inputs) if way == "traced" else getattr(zoo, way)(net)
    compare(module.eval(), inputs)


def test_other_methods_and_training_mode() -> None:
    torch.manual_seed(0)
    compare(zoo.scripted(zoo.Switch()), (rand(3, 4),), "features")
    compare(zoo.scripted(zoo.Switch()).train(), (rand(3, 4),))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("policy_go2.pt", (rand(3, 45),)),
        ("policy_go2_himloco.pt", (rand(3, 270),)),
        ("policy_g1_loco_lstm.pt", (rand(1, 96),)),
        ("wtw_adaptation.pt", (rand(3, 2100),)),
        ("silero_vad.pt", (rand(1, 512), 16000)),
    ],
)
def test_archives_of_others(name: str, inputs: tuple[Any, ...]) -> None:
    compare(torch.jit.load(str(shared_file(f"torchscript/{name}"))).eval(), inputs)


def test_state_is_left_as_by_the_interpreter() -> None:
    torch.manual_seed(0)
    one = zoo.scripted(zoo.Stateful())
    other = zoo.reload(one)
    x = rand(1, 3)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(run_method(one, (x,)), other(x), rtol=1e-6, atol=1e-6)
    assert one.calls == other.calls == 2
    assert len(one.seen) == len(other.seen) == 3
    for mine, theirs in zip(
        (one.hidden, one.replaced, *one.seen), (other.hidden, other.replaced, *other.seen), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


class Containers(nn.Module):
    """Lists, dicts and tuples in all their uses, while and for loops with breaks, a with block, isinstance, a fork."""

    def forward(self, x: Tensor, more: list[Tensor] | None = None, anything: Any = 3) -> tuple[Tensor, dict[str, int]]:
        numbers = [3, 1, 2]
        numbers.sort()
        numbers.insert(1, 7)
        numbers.reverse()
        last = numbers.pop()
        numbers += [x.dim()]
        named = {"a": last, "b": len(numbers)}
        named["c"] = named.pop("a")
        if "a" not in named:
            named.update({"d": numbers[-1]})
        pairs = [(key, value) for key, value in named.items()]  # noqa: C416 - the loop is the point
        alias = [x]
        same = alias
        same.append(x + 1)
        if more is not None:
            alias.extend(more)
        total = torch.zeros_like(x)
        i = 0
        while i < 10:
            i += 1
            if i == 2:
                continue
            if i > len(alias) + 2:
                break
            total = total + alias[i % len(alias)] * i
        with torch.no_grad():
            total = total * 2
        if isinstance(anything, int):
            total = total + anything
        doubled = torch.jit.fork(torch.relu, total)
        values: list[float] = x.flatten().tolist()
        return torch.jit.wait(doubled) + values[0] + len(pairs), named


@pytest.mark.parametrize("extra", [(), ([rand(2, 3)],), (None, "text")])
def test_the_language(extra: tuple[Any, ...]) -> None:
    compare(zoo.scripted(Containers()), (rand(2, 3), *extra))


class Rejecting(nn.Module):
    """Raises for negative sums."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() < 0):
            raise ValueError("negative input")
        return x


def test_what_the_model_raises() -> None:
    module = zoo.scripted(Rejecting())
    assert torch.equal(run_method(module, (rand(2),)), rand(2))
    with pytest.raises(ModelRaisedError, match="negative input"):
        run_method(module, (-rand(2),))
    with pytest.raises(TypeError, match="missing a value for argument 'x'"):
        run_method(module, ())


class Chain(nn.Module):
    """A long chain of values that are needed once."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            x = torch.relu(x + 1)
            x = x * 2
        return x


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[int] = []

    class Watching(Domain):
        def __init__(self) -> None:
            self.seen: list[weakref.ref[Tensor]] = []

        def apply(self, step: Step, inputs: Any) -> Any:
            results = super().apply(step, inputs)
            self.seen += [weakref.ref(result) for result in results if isinstance(result, Tensor)]
            alive.append(sum(reference() is not None for reference in self.seen))
            return results

    run_method(zoo.scripted(Chain()), (rand(2),), domain=Watching())
    assert len(alive) >= 60
    assert max(alive) <= 3  # a loop keeps what a round began with


class Unreadable(nn.Module):
    """Uses an op that only torch's interpreter can run."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.profiler.record_function("part"):
            return x + 1


def test_what_cannot_be_executed_is_named() -> None:
    with pytest.raises(UnsupportedNodeError, match="with"):
        run_method(zoo.scripted(Unreadable()), (rand(2),))


def test_a_branch_is_only_explored_where_that_has_no_effect() -> None:
    merged: list[str] = []
    skipped: list[str] = []

    class Exploring(Domain):
        explores = True

        def merge(self, _: Step, taken: Any, other: Any) -> None:
            merged.append(f"{taken[0].tolist()} {other[0].tolist()}")

        def skip(self, step: Step, *_: Any) -> None:
            skipped.append(step.op)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.big = True

        def forward(self, x: Tensor) -> Tensor:
            y = x + 1 if bool(x.sum() > 0) else x - 1
            if bool(x.sum() < 0):
                self.count.add_(1)
            if self.big:
                return y * 2
            return y

    module = zoo.scripted(Branching())
    executor = Executor(module, Exploring())
    result = executor.run(compile_graph(ir.inlined_copy(module, "forward")), "forward", (torch.ones(1),))
    assert result.tolist() == [4.0]
    assert merged == ["[2.0] [0.0]"]
    assert skipped == ["prim::If"]
    assert module.count.item() == 0.0


def test_calls_are_inlined_however_the_module_was_first_compiled() -> None:
    archive = zoo.scripted(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    with torch.no_grad(), torch.jit.optimized_execution(False):
        archive(torch.zeros(2, 3, 4, 4))
    kinds = {node.kind() for node in ir.walk(ir.inlined_copy(archive, "forward"))}
    assert not kinds & {"prim::CallFunction", "prim::CallMethod"}
