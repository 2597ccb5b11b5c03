"""The model checker on a real server: a short run finds nothing, and each deliberate bug is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.chaos.world import World


@pytest.mark.slow
def test_a_few_kills_break_no_promise(tmp_path: Path) -> None:
    outcome = World(tmp_path, seed=1).run(kills=6)
    assert outcome.violations == []
    assert outcome.server_kills >= 6
    # A run that hardly did anything proves nothing.
    assert outcome.calls["submit"] >= 3
    assert outcome.calls["upload"] >= 10


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "word"), [("lost-job", "lost job"), ("lost-event", "job "), ("orphan-blob", "orphan")])
def test_the_checker_finds_a_bug(tmp_path: Path, bug: str, word: str) -> None:
    outcome = World(tmp_path, seed=3, bug=bug).run(kills=6)
    assert any(word in text for text in outcome.violations), outcome
