"""The snippets of README.md do what it says, against a real server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.running_server import RunningServer
from pruning_client.cli.main import build_parser, main

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()


def snippet(name: str) -> str:
    """The Python block after `<!-- test: name -->`."""
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a `model.pt` for the images that README makes."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    torch.jit.script(net).save("model.pt")
    return tmp_path


def test_the_snippets_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet("make-data"), "make-data", "exec"), {})
    with RunningServer(folder / "data") as server:
        code = snippet("sdk").replace("127.0.0.1:50051", server.address)
        assert server.address in code
        exec(compile(code, "sdk", "exec"), {})
        assert capsys.readouterr().out.strip() in {"PASS", "FAIL", "INCONCLUSIVE"}
        assert (folder / "pruned.pt").is_file()
        (folder / "pruned.pt").unlink()

        commands = re.findall(r"^\$ (prune (?:submit|inspect model.pt$).*)$", README, re.MULTILINE)
        assert len(commands) >= 3
        for command in commands:
            assert main([*shlex.split(command)[1:], "--server", server.address]) == 0, command
        for name in ("pruned.pt", "report.json", "faster.pt"):
            assert (folder / name).is_file()


def test_every_flag_in_the_table_exists() -> None:
    submit = build_parser().parse_args(["submit", "model.pt", "--validation", "d.npz", "--strategy", "static"])
    table = README[README.index("### What you can ask for") :].split("\n\n")[1]
    flags = re.findall(r"`(--[a-z-]+)", table)
    assert len(flags) > 20
    for flag in flags:
        assert hasattr(submit, flag.removeprefix("--").replace("-", "_")), flag


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
