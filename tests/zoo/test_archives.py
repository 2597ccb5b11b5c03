"""A fast slice of the zoo: small archives of many families. All of it is `make zoo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo import making
from zoo.catalogue import archives, find, missing
from zoo.entries import Entry, Form, MissingPartError, Source
from zoo.examining import examine
from zoo.rows import Row, Verdict
from zoo.run import run_all

SCRIPTED = ["resnext", "googlenet", "squeezenet", "shufflenet-v2", "mobilenet-v3", "deeplab", "lstm-2-layers-both-ways"]
TRACED = [
    "alexnet",
    "vgg-batch-norm",
    "mnasnet",
    "gru",
    "lstm-cell-policy",
    "transformer-decoder",
    "transformer-encoder",
]
HERE = [
    *[pytest.param(find(name), Form.SCRIPT, id=f"{name}-script") for name in SCRIPTED],
    *[pytest.param(find(name), Form.TRACE, id=f"{name}-trace") for name in TRACED],
]
FILES = [
    pytest.param(entry, form, id=f"{entry.name}-{form}")
    for entry, form in archives()
    if entry.source is Source.DATA and entry.name != "resnet56-cifar10"
]
OTHERS = ["bert", "swin", "monai-unet"]


@pytest.mark.parametrize(("entry", "form"), HERE)
def test_archives_of_code_that_is_always_there(entry: Entry, form: Form, tmp_path: Path) -> None:
    making.save(entry, form, tmp_path)
    check(entry, form, examine(tmp_path / making.ARCHIVE, making.saved_samples(tmp_path)))


@pytest.mark.shared_data
@pytest.mark.parametrize(("entry", "form"), FILES)
def test_files_of_other_people(entry: Entry, form: Form, tmp_path: Path) -> None:
    try:
        making.save(entry, form, tmp_path)
    except MissingPartError as error:
        pytest.skip(str(error))
    check(entry, form, examine(tmp_path / making.ARCHIVE, making.saved_samples(tmp_path)))


@pytest.mark.slow
def test_archives_of_packages(tmp_path: Path) -> None:
    wanted = [(find(name), Form.TRACE) for name in OTHERS]
    if reason := " and ".join(dict.fromkeys(reason for entry, _ in wanted if (reason := missing(entry)))):
        pytest.skip(reason)
    for entry, _, row in run_all(wanted, tmp_path, jobs=1, limit_seconds=120.0, limit_mib=12_000):
        check(entry, Form.TRACE, row)


def check(entry: Entry, form: Form, row: Row) -> None:
    """What holds of every archive."""
    assert row.verdict in {Verdict.HALVED, Verdict.SHORT if entry.why_stuck(form) else Verdict.HALVED}, (
        entry.name,
        row,
    )
    assert row.failed_rules == ()
    assert row.max_error is not None
    assert row.max_error <= 1e-4
    assert row.frozen is not None
    assert not row.frozen or row.reasons, "what is frozen says why"


def test_a_process_that_takes_too_long_is_a_row(tmp_path: Path) -> None:
    ((_, _, row),) = run_all([(find("alexnet"), Form.TRACE)], tmp_path, jobs=1, limit_seconds=0.01, limit_mib=12_000)
    assert row.verdict is Verdict.CRASHED
    assert "not done" in row.remark


def test_a_process_without_memory_is_a_row(tmp_path: Path) -> None:
    ((_, _, row),) = run_all([(find("alexnet"), Form.TRACE)], tmp_path, jobs=1, limit_seconds=60.0, limit_mib=100)
    assert row.verdict is Verdict.CRASHED
    assert row.remark
