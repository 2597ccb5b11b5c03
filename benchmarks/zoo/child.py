"""The two processes of an archive: one makes it, the other, which has none of its code, examines it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from zoo.rows import Row, Verdict

ROW = "row.json"


def main() -> int:
    """`FOLDER NAME/FORM ...`: makes these archives, each in a folder of its name; leaves a row there where it cannot."""
    # Nothing is downloaded: all weights are random.
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder, *wanted = sys.argv[1:]
    for one in wanted:
        name, form = one.split("/")
        _guarded(Path(folder) / one, "make", partial(_make, name=name, form=form))
    return 0


def _make(folder: Path, name: str, form: str) -> Row | None:
    from zoo import making
    from zoo.catalogue import find, missing
    from zoo.entries import Form, MissingPartError

    entry = find(name)
    if reason := missing(entry):
        return Row(Verdict.SKIPPED, remark=reason)
    try:
        making.save(entry, Form(form), folder)
    except MissingPartError as error:
        return Row(Verdict.SKIPPED, remark=str(error))
    return None


def examine_in(folder: Path, limit_mib: int) -> None:
    """Leaves the row of the archive in a folder; a process of its own does this, under a limit of address space."""
    import torch

    from zoo import making
    from zoo.examining import examine

    limit = limit_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    _guarded(folder, "examine", lambda place: examine(place / making.ARCHIVE, making.saved_samples(place)))


def _guarded(folder: Path, what: str, work: Callable[[Path], Row | None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        row = work(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        (folder / "error.txt").write_text(traceback.format_exc())
        text = (str(error).strip().splitlines() or [""])[-1]
        row = Row(Verdict.CRASHED, remark=f"{what}: {type(error).__name__}: {text}")
    if row is not None:
        (folder / ROW).write_text(json.dumps(dataclasses.asdict(row)))


if __name__ == "__main__":
    sys.exit(main())
