"""The proof that a shrunk archive equals the masked model: what passes, what must not, and what is said about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers import zoo
from helpers.models import ConvNet, image_data
from helpers.proving import SmallNet, loader, shrunk, small_archive
from helpers.runs import make_spec, make_workspace, run_here, run_process, sparsity
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.proof.pair import Call
from pruning_server.graph.structure import analyse, shrink
from pruning_server.graph.surgery.cut import Cut
from pruning_server.graph.surgery.tensors import shrink_tensors
from pruning_server.jobs.events import CheckPassed
from pruning_server.jobs.workspace import EXPECTED_FILE
from pruning_server.spec.report import VerifySection
from pruning_server.spec.request import Granularity, StaticStrategy
from pruning_server.worker.check import check_run
from pruning_server.worker.expected import pack, unpack
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.proof import prove

X = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))
REMOVED = {("inner.weight", 0): [1, 5, 6], ("first.weight", 0): [0, 3]}
INNER = {("inner.weight", 0): [1, 5, 6]}


def calls(x: Tensor = X) -> list[Call]:
    """Forward at two batch sizes."""
    return [Call("forward", (x[:1],)), Call("forward", (x,))]


def proven(original: torch.jit.ScriptModule, smaller: torch.jit.ScriptModule, cut: Cut, x: Tensor = X) -> VerifySection:
    """The proof of two modules, saved and loaded."""
    return prove(loader(original), loader(smaller), cut, calls(x), seed=3)


def refusal(
    original: torch.jit.ScriptModule, smaller: torch.jit.ScriptModule, cut: Cut, x: Tensor = X
) -> JobFailureError:
    """What the proof says against it."""
    with pytest.raises(JobFailureError) as caught:
        proven(original, smaller, cut, x)
    assert caught.value.reason is Reason.VERIFICATION_FAILED
    assert "Nothing was delivered" in caught.value.message
    return caught.value


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_a_shrunk_archive_is_proven_on_given_and_random_weights_and_in_training_mode(way: str) -> None:
    archive = small_archive(way)
    smaller, cut = shrunk(archive, X, REMOVED)
    with torch.no_grad():  # as recovery leaves it
        for parameter in smaller.parameters():
            parameter.mul_(1.5)
    proof = proven(archive, smaller, cut)
    assert proof.max_relative_error <= 1e-5
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-12
    assert (proof.dtype, proof.dtype_randomized) == ("float32", "float64")
    assert proof.batch_sizes == (1, 3)
    assert proof.methods == ("forward",)
    assert proof.train_mode
    assert proof.half_precision_difference is None
    assert proof.notes == ()


def leaking(cut: Cut) -> Cut:
    """A removed channel's bias reaches its consumer."""
    return tuple(replace(one, zeroed=()) for one in cut)


def shifted(cut: Cut) -> Cut:
    """A consumer that keeps other coordinates than the producer."""
    kept, gone = tuple(range(3, 12)), (0, 1, 2)
    return tuple(
        replace(one, kept=kept, zeroed=gone) if (one.tensor, one.axis) == ("back.weight", 1) else one for one in cut
    )


@pytest.mark.parametrize("way", ["scripted", "traced"])
@pytest.mark.parametrize("spoil", [leaking, shifted])
def test_mistakes_to_which_the_given_weights_are_blind_are_found(way: str, spoil: Callable[[Cut], Cut]) -> None:
    """All that passes here is scaled by 1e-6; the op named is the consumer's convolution."""
    archive = small_archive(way)
    smaller, cut = shrunk(archive, X, INNER)
    error = refusal(archive, smaller, spoil(cut))
    assert "with random weights" in error.message
    assert error.metadata["op"] in {"aten::conv2d", "aten::_convolution"}
    assert error.metadata["op"] in error.message
    assert "conv.py" in error.metadata["source"]


def test_mistakes_that_the_given_weights_show_are_found_there() -> None:
    net = SmallNet()
    nn.init.ones_(net.scale)
    archive = small_archive(net=net)
    smaller, cut = shrunk(archive, X, INNER)
    assert "with the delivered weights" in refusal(archive, smaller, leaking(cut)).message


def test_a_consumer_that_was_not_cut_is_found() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, INNER)
    smaller.back._c.setattr("weight", nn.Parameter(archive.back.weight.detach().clone()))
    assert "'back.weight' has shape" in refusal(archive, smaller, cut).message
    uncut = tuple(one for one in cut if (one.tensor, one.axis) != ("back.weight", 1))
    error = refusal(archive, smaller, uncut)
    assert "raises" in error.message
    assert error.metadata["op"] == "aten::conv2d"


def test_values_of_other_channels_are_found_before_recovery() -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, INNER)
    with torch.no_grad():
        smaller.back.weight.copy_(smaller.back.weight.flip(1))
    with pytest.raises(JobFailureError, match=r"back\.weight"):
        prove(loader(archive), loader(smaller), cut, calls(), load_unrecovered=loader(smaller))
    # What pruning rewrote on purpose is left out of that.
    prove(
        loader(archive),
        loader(smaller),
        cut,
        calls(),
        load_unrecovered=loader(smaller),
        folded=frozenset({"back.weight"}),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_proven_in_a_wider_copy(dtype: torch.dtype) -> None:
    archive = small_archive()
    smaller, cut = shrunk(archive, X, REMOVED)
    proof = proven(archive.to(dtype), smaller.to(dtype), cut, X.to(dtype))
    assert proof.max_relative_error <= 1e-5
    assert (proof.dtype, proof.dtype_randomized) == ("float32", "float64")
    assert proof.half_precision_difference is not None
    assert proof.half_precision_difference <= 5e-2
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-12


class Casting(SmallNet):
    """Its code names types, and draws."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x.to(torch.float32))))
        y = torch.dropout(torch.sigmoid(self.inner_norm(self.inner(x))).float(), 0.3, self.training)
        x = x + self.scale * self.back(y) * torch.ones(1)
        return self.head(x.mean([2, 3]))


def test_types_that_the_code_names_are_widened() -> None:
    archive = small_archive(net=Casting())
    smaller, cut = shrunk(archive, X, INNER)
    proof = proven(archive, smaller, cut)
    assert proof.dtype_randomized == "float64"
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-12
    assert proof.train_mode


class Narrow(SmallNet):
    """Its code takes one type only."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        x = torch.relu(self.norm(self.first(x)))
        return self.head((x + self.back(self.inner(x))).mean([2, 3]))


def test_a_model_that_runs_in_float32_only_is_proven_there() -> None:
    archive = small_archive(net=Narrow())
    smaller, cut = shrunk(archive, X, INNER)
    proof = proven(archive, smaller, cut)
    assert proof.dtype_randomized == "float32"
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-4
    assert any("float64" in note for note in proof.notes)
    assert "a relative error" in refusal(archive, smaller, leaking(cut)).message


class Unkind(SmallNet):
    """Does not train on samples, and has a method that nobody knows how to call."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training, "evaluation only"
        x = torch.relu(self.norm(self.first(x)))
        return self.head((x + self.back(self.inner(x))).mean([2, 3]))

    @torch.jit.export
    def named(self, text: str) -> str:
        return text + "!"


def test_what_could_not_be_compared_is_said() -> None:
    archive = small_archive(net=Unkind())
    smaller, cut = shrunk(archive, X, INNER)
    proof = proven(archive, smaller, cut)
    assert not proof.train_mode
    assert proof.methods == ("forward",)
    assert [note for note in proof.notes if "Training mode" in note and "evaluation only" in note]
    assert [note for note in proof.notes if "Method named" in note]
    given = prove(loader(archive), loader(smaller), cut, [*calls(), Call("named", ("a",))])
    assert given.methods == ("forward", "named")


class Recurrent(nn.Module):
    """[N, T, 4] in, [N, 3] out."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.cells = kind(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


@pytest.mark.parametrize("way", ["scripted", "frozen"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_flat_lists_and_constants_of_the_code_are_proven_too(way: str, kind: type) -> None:
    """A recurrent net holds its weights under several names; a frozen one in its code."""
    torch.manual_seed(0)
    archive = getattr(zoo, way)(Recurrent(kind).eval())
    x = torch.rand(3, 5, 4)
    structure = analyse(zoo.reload(archive), {"forward": [(x[:2],), (x,)]}, batch_size=2)
    smaller = zoo.reload(archive)
    cut = shrink(smaller, structure, {number: [0] for number in range(len(structure.groups))})
    assert len(cut) > 8
    proof = prove(loader(archive), loader(smaller), cut, calls(x), load_unrecovered=loader(smaller))
    assert proof.max_relative_error <= 1e-5
    assert proof.max_relative_error_randomized is not None
    assert proof.max_relative_error_randomized <= 1e-12
    assert proof.train_mode
    assert "a relative error" in refusal(archive, smaller, leaking(cut), x).message


def test_the_cut_survives_the_file_between_two_processes(tmp_path: Path) -> None:
    archive = small_archive()
    _, cut = shrunk(archive, X, REMOVED)
    path = tmp_path / "expected.npz"
    path.write_bytes(pack([((X, 3), archive.eval()(X))], {}, 5, cut))
    found = unpack(path)
    assert found.cut == cut
    (run,) = found.meta.runs
    tensor, number = found.arguments(run, "cpu")
    assert torch.equal(tensor, X)
    assert number == 3


@pytest.fixture(scope="module")
def shrunk_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that removed channels."""
    torch.manual_seed(0)
    inputs, targets = image_data(120, seed=2)
    spec = make_spec(sparsity(0.4), strategy=StaticStrategy(granularity=Granularity.CHANNEL))
    root = make_workspace(
        tmp_path_factory.mktemp("job") / "run", zoo.scripted(ConvNet()), {"inputs": inputs, "targets": targets}, spec
    )
    ran = run_here(root)
    verify = ran.report["verify"]
    assert verify["max_relative_error"] <= 1e-5
    assert verify["max_relative_error_randomized"] <= 1e-9
    assert verify["dtype_randomized"] == "float64"
    assert verify["methods"] == ["forward"]
    assert verify["train_mode"]
    assert len(verify["batch_sizes"]) == 2
    return root


def test_a_second_process_proves_the_file(shrunk_job: Path) -> None:
    code, messages, _ = run_process("check", shrunk_job)
    assert code == 0
    assert isinstance(messages[-1], CheckPassed)
    assert messages[-1].max_relative_error <= 1e-5


def test_a_second_process_refuses_a_file_that_is_not_the_masked_model(shrunk_job: Path, tmp_path: Path) -> None:
    """Outputs and weights are what the run says, so that only the proof can know."""
    root = tmp_path / "run"
    shutil.copytree(shrunk_job, root)
    found = unpack(root / EXPECTED_FILE)
    assert any(one.zeroed for one in found.cut)
    runs = [
        (found.arguments(run, "cpu"), tuple(found.tensor(stored, "cpu") for stored in run.outputs))
        for run in found.meta.runs
    ]
    (root / EXPECTED_FILE).write_bytes(pack(runs, {}, found.meta.seed, leaking(found.cut)))
    with pytest.raises(JobFailureError, match="differs from the masked model") as caught:
        check_run(RunFolder(root))
    assert caught.value.reason is Reason.VERIFICATION_FAILED


class Hidden(SmallNet):
    """Code that knows a width stands where no plain call of `forward` gets."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.inner(x)
        if self.training or self.mode > 0:
            y = y * torch.linspace(0.0, 1.0, 12, dtype=y.dtype).mean() + y.reshape(-1, 12, 6, 6).mean()
        return self.head((x + self.back(y)).mean([2, 3]))


class Switched(Hidden):
    """The same, with a way in."""

    @torch.jit.export
    def set_mode(self, mode: int) -> None:
        self.mode = mode


def test_branches_that_a_setter_or_training_mode_opens_are_proven() -> None:
    """The surgery planned without them gives equal outputs of `forward`, and another number of rows behind them."""
    plain = small_archive()
    _, cut = shrunk(plain, X, INNER)
    for net, said in ((Switched(), "set_mode and then forward"), (Hidden(), "in forward in training mode")):
        archive = small_archive(net=net)
        broken = zoo.reload(archive)
        shrink_tensors(broken, (), cut)
        error = refusal(archive, broken, cut)
        assert said in error.message
        assert error.metadata["op"] == "aten::reshape"


class Drawing(SmallNet):
    """Draws as many numbers as there are channels, in training mode only."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = self.inner(x)
        if self.training:
            y = y + torch.rand_like(y)
        return self.head((x + self.back(y)).mean([2, 3]))


def test_numbers_that_are_drawn_per_channel_are_no_mismatch_in_training_mode() -> None:
    plain = small_archive()
    _, cut = shrunk(plain, X, INNER)
    archive = small_archive(net=Drawing())
    smaller = zoo.reload(archive)
    shrink_tensors(smaller, (), cut)
    proof = proven(archive, smaller, cut)
    assert not proof.train_mode
    assert [note for note in proof.notes if "draws" in note]
