"""README's snippet about TLS and tokens does what it says, and docs/security.md names flags that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import standin_server
from helpers.certificates import self_signed
from helpers.running_server import RunningServer
from pruning_client.cli.arguments import build_parser
from pruning_server.settings import options

REPOSITORY = Path(__file__).resolve().parents[2]
SECURITY = (REPOSITORY / "docs" / "security.md").read_text()


def commands() -> list[str]:
    readme = (REPOSITORY / "README.md").read_text()
    found = re.search(r"<!-- test: access -->\n```console\n(.*?)```", readme, re.DOTALL)
    assert found
    return [line.removeprefix("$ ") for line in found[1].splitlines()]


def run(command: str, folder: Path) -> str:
    """Runs a line of the snippet in a shell, with the commands of this environment."""
    scripts = {"pruning-server": "-m pruning_server", "prune": "-m pruning_client"}
    name, rest = command.split(" ", 1)
    line = f"{sys.executable} {scripts[name]} {rest}"
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def test_the_snippet_runs(tmp_path: Path) -> None:
    add, serve, list_jobs = commands()
    pair = self_signed(tmp_path, "server")
    shutil.copy(pair.certificate, tmp_path / "ca.pem")
    run(add, tmp_path)
    flags = serve.split()[1:]
    assert flags[:2] == ["--address", "0.0.0.0:50051"]
    flags[1] = "0.0.0.0:0"
    flags = [str(tmp_path / flag) if (tmp_path / flag).is_file() else flag for flag in flags]
    with RunningServer(tmp_path / "data", *flags, program=standin_server.PROGRAM) as server:
        port = server.address.rpartition(":")[2]
        assert json.loads(run(f"{list_jobs.replace('50051', port)} --json", tmp_path)) == {"jobs": []}


def test_the_flags_of_the_page_exist() -> None:
    known = {option.flag for option in options().values()}
    for name in ("submit", "jobs"):
        arguments = ["model.pt", "--validation", "d.npz", "--strategy", "static"] if name == "submit" else []
        parsed = vars(build_parser().parse_args([name, *arguments]))
        known |= {f"--{key.replace('_', '-')}" for key in parsed}
    access = SECURITY[SECURITY.index("## Access") : SECURITY.index("## How to deploy")]
    assert set(re.findall(r"`(--[a-z-]+)", access)) - {"--role"} <= known
