"""Every archive of the zoo, each examined in a process of its own, under limits; `make zoo` writes docs/zoo.md with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zoo.catalogue import archives
from zoo.child import ROW, examine_in
from zoo.entries import Entry, Form
from zoo.rows import Row, Verdict
from zoo.table import write_table

_ROOT = Path(__file__).resolve().parents[2]
# Children of the fork server start with torch loaded, and with nothing of transformers and monai.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["zoo.examining"])

Archive = tuple[Entry, Form]
Result = tuple[Entry, Form, Row]


def main() -> int:
    """Runs what is asked for and prints a line each; 1 where an archive crashed or came out wrong."""
    os.environ["OMP_NUM_THREADS"] = "1"
    options = _options()
    wanted = [one for one in archives() if _is_wanted(*one, options)]
    start = time.monotonic()
    known = _known(Path(options.json)) if options.json else {}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for result in run_all(wanted, Path(folder), options.jobs, options.seconds, options.mib):
            _tell(*result)
            results.append(result)
            if options.json:
                known[_name(result[0], result[1])] = dataclasses.asdict(result[2])
                Path(options.json).write_text(json.dumps(known, indent=1))
    if options.write:
        write_table(Path(options.write), _all_of(known) if options.json else results)
    bad = [row for _, _, row in results if row.verdict in {Verdict.CRASHED, Verdict.WRONG}]
    print(f"{len(results)} archives, {len(bad)} crashed or wrong, {time.monotonic() - start:.0f} s")
    return 1 if bad else 0


def run_all(
    wanted: Sequence[Archive], folder: Path, jobs: int, limit_seconds: float, limit_mib: int
) -> Iterable[Result]:
    """Makes all archives, then examines each and says what became of it, whatever happens to the processes."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda part: _make(part, folder), [wanted[number::jobs] for number in range(jobs)]))
        rows = pool.map(lambda one: _examine(_folder_of(one, folder), limit_seconds, limit_mib), wanted)
        for (entry, form), row in zip(wanted, rows, strict=True):
            yield entry, form, row


def _folder_of(archive: Archive, folder: Path) -> Path:
    return folder / archive[0].name / archive[1].value


def _make(wanted: Sequence[Archive], folder: Path) -> None:
    """One process for many: what it does not get to has no archive in its folder."""
    if not wanted:
        return
    paths = [str(_ROOT / part) for part in ("benchmarks", "tests", "server")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "zoo.child", str(folder), *(_name(entry, form) for entry, form in wanted)]
    subprocess.run(command, env=environment, capture_output=True, check=False)


def _examine(folder: Path, limit_seconds: float, limit_mib: int) -> Row:
    row = folder / ROW
    if not row.is_file():
        process = _CONTEXT.Process(target=examine_in, args=(folder, limit_mib))
        process.start()
        process.join(limit_seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return Row(Verdict.CRASHED, remark=f"not done after {limit_seconds:g} s")
        if not row.is_file():
            return Row(Verdict.CRASHED, remark=f"the process left nothing but exit code {process.exitcode}")
    return _read(row)


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs, by archive."""
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _all_of(known: dict[str, dict[str, Any]]) -> list[Result]:
    """In the catalogue's order."""
    return [(entry, form, _row(known[name])) for entry, form in archives() if (name := _name(entry, form)) in known]


def _name(entry: Entry, form: Form) -> str:
    return f"{entry.name}/{form.value}"


def _read(path: Path) -> Row:
    return _row(json.loads(path.read_text()))


def _row(fields: dict[str, Any]) -> Row:
    fields = dict(fields)
    for name in ("reasons", "causes", "failed_rules", "notes"):
        fields[name] = tuple(tuple(one) if isinstance(one, list) else one for one in fields[name])
    return Row(**{**fields, "verdict": Verdict(fields["verdict"])})


def _tell(entry: Entry, form: Form, row: Row) -> None:
    share = "" if row.frozen is None else f"frozen {row.frozen:.2f}, {row.groups} groups, {row.seconds:.2f} s"
    if row.macs and row.macs_after:
        share += f", MACs {row.macs_after / row.macs:.2f}, error {row.max_error:.0e}"
    print(f"{entry.name:32} {form.value:6} {row.verdict.value:10} {share} {row.remark}"[:200], flush=True)


def _is_wanted(entry: Entry, form: Form, options: argparse.Namespace) -> bool:
    return (not options.only or any(part in entry.name for part in options.only)) and (
        not options.form or form.value == options.form
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of names; all archives without")
    parser.add_argument("--form", choices=[form.value for form in Form])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="archives at a time")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit for examining one archive")
    parser.add_argument("--mib", type=int, default=12_000, help="limit of one process's address space")
    parser.add_argument("--write", help="file for the table")
    parser.add_argument("--json", help="file for everything that was found; earlier findings in it stay")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
