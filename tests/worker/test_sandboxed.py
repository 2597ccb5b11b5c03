"""The real worker inside the sandbox: the same bits come out, and what a model's program does stays within its folder."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import sandboxing, zoo
from helpers.models import fitted, mlp, table_data
from helpers.runs import make_spec, make_workspace, sparsity
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.exits import ExitCause, classify
from pruning_server.adapters.messages import MessageDecoder
from pruning_server.adapters.process import Child, ExitStatus, child_environment, python_command
from pruning_server.jobs.events import CheckPassed, RunSucceeded, WorkerMessage
from pruning_server.jobs.workspace import EXPECTED_FILE, PRUNED_FILE, REPORT_FILE
from pruning_server.sandbox.policy import Policy
from pruning_server.spec.request import Granularity, StaticStrategy

DEADLINE_SECONDS = 280.0
MEMORY_BYTES = 4 << 30


@pytest.fixture(autouse=True)
def _given() -> None:
    sandboxing.needs_sandbox()


def carried_out(folder: Path, *arguments: str, inside: bool = True) -> tuple[ExitStatus, list[WorkerMessage], str, str]:
    """Runs a Python command as the executor would; returns its end, its messages, its stdout and its stderr."""
    clock, decoder, messages = SystemClock(), MessageDecoder(), []
    with Child(
        python_command(*arguments),
        folder=folder,
        environment=child_environment(home=folder, threads=1, cuda_devices=""),
        events_flag="--events-fd",
        policy=Policy(write=(str(folder),), file_bytes=1 << 30) if inside else None,
    ) as child:
        deadline = clock.monotonic() + DEADLINE_SECONDS
        while not child.has_exited():
            assert clock.monotonic() < deadline, child.stderr.text()
            messages += decoder.feed(child.read(0.1))
        messages += decoder.feed(child.drain(1.0))
        return child.finish(), messages, child.stdout.text(), child.stderr.text()


def work(folder: Path, command: str, *, inside: bool = True) -> tuple[ExitStatus, list[WorkerMessage], str, str]:
    flags = ("--workspace", str(folder), "--memory-bytes", str(MEMORY_BYTES))
    return carried_out(folder, "-m", "pruning_server.worker", command, *flags, inside=inside)


def laid_out(root: Path, model: torch.jit.ScriptModule, granularity: Granularity = Granularity.WEIGHT) -> Path:
    inputs, targets = table_data(80)
    spec = make_spec(sparsity(0.5), strategy=StaticStrategy(granularity=granularity))
    return make_workspace(root, model, {"inputs": inputs, "targets": targets}, spec)


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.CHANNEL])
def test_the_same_seed_gives_the_same_bits_inside_and_outside(tmp_path: Path, granularity: Granularity) -> None:
    model = zoo.scripted(fitted(mlp(), *table_data(80), epochs=2))
    found = {}
    for inside in (False, True):
        folder = laid_out(tmp_path / str(inside), model, granularity)
        status, messages, _, errors = work(folder, "run", inside=inside)
        assert status.code == 0, errors
        assert isinstance(messages[-1], RunSucceeded), (messages[-1], errors)
        report = json.loads((folder / REPORT_FILE).read_bytes())
        found[inside] = (
            (folder / PRUNED_FILE).read_bytes(), (folder / EXPECTED_FILE).read_bytes(), report["accuracy"], report["layers"],
            report["model"], report["generalization"],
        )  # fmt: skip
    assert found[True] == found[False]
    status, messages, _, errors = work(folder, "check")
    assert isinstance(messages[-1], CheckPassed), (messages, errors)


class Dividing(nn.Module):
    """Divides the least integer by -1, which the processor refuses; upstream does not ask before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = int((x.sum() * 0 + 1).item())
        return self.linear(x) + (-9223372036854775807 - one) // -one


class Diverged(nn.Module):
    """Asks LAPACK for the eigenvalues of NaN, which ends in foreign memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bad = torch.full([4, 4], float("nan")) * (x.sum() * 0 + 1)
        return self.linear(x) + torch.linalg.eigvals(bad).real.sum()


RUNNING = """
    import warnings
    warnings.simplefilter("ignore")
    import torch
    torch.jit.load("model.pt")(torch.zeros(2, 8))
"""


@pytest.mark.parametrize(("net", "how"), [(Dividing, "SIGFPE"), (Diverged, "SIGSEGV")])
def test_an_operator_that_crashes_costs_its_own_process(tmp_path: Path, net: type[nn.Module], how: str) -> None:
    torch.jit.script(net()).save(str(tmp_path / "model.pt"))
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUNNING))
    status, _, _, errors = carried_out(tmp_path, str(script))
    assert status.signal_name == how, errors
    assert classify(status, None, errors) is ExitCause.SIGNAL


class Saving(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x


class Reading(nn.Module):
    def __init__(self, path: str, shared: bool) -> None:
        super().__init__()
        self.path = path
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.from_file(self.path, self.shared, 8, dtype=torch.uint8)
        if self.shared:
            found.fill_(7)
        return x + found.sum()


class Greedy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros([1 << 42]).sum()


class OnLoading(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


LOADING = """
    import json, resource, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
    told = {}
    for name in json.load(open("names.json")):
        try:
            torch.jit.load(f"{name}.pt")(torch.zeros(2))
        except (RuntimeError, MemoryError) as error:
            told[name] = type(error).__name__
        else:
            told[name] = "done"
    json.dump(told, open("told.json", "w"))
"""


def test_programs_that_the_gate_would_refuse_reach_nothing_either(tmp_path: Path) -> None:
    """Each attack by itself, without the gate in front of it: the second wall holds alone."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(bytes(range(8)))
    attacks: dict[str, Callable[[], nn.Module]] = {
        "save outside": lambda: Saving(str(tmp_path / "written")),
        "read passwd": lambda: Reading("/etc/passwd", False),
        "read outside": lambda: Reading(str(outside), False),
        "overwrite outside": lambda: Reading(str(outside), True),
        "take all memory": Greedy,
        "write on loading": lambda: OnLoading(str(tmp_path / "written-on-loading")),
    }
    for name, make in attacks.items():
        torch.jit.script(make()).save(str(folder / f"{name}.pt"))
    (tmp_path / "written-on-loading").unlink(missing_ok=True)
    (folder / "names.json").write_text(json.dumps(list(attacks)))
    script = folder / "load.py"
    script.write_text(textwrap.dedent(LOADING))
    status, _, _, errors = carried_out(folder, str(script))
    assert status.code == 0, errors
    told = json.loads((folder / "told.json").read_text())
    assert set(told) == set(attacks)
    # aten::save does not look whether its file could be opened; what lies there afterwards is what counts.
    assert {name for name, how in told.items() if how == "done"} <= {"save outside", "write on loading"}
    assert outside.read_bytes() == bytes(range(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "run"]
