"""The file of tokens: what it lets in, what it refuses to read, and how it follows changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from helpers.stores import ManualClock
from pruning_server.adapters.token_file import TokenFile, add_token, hash_token, read_entries, remove_tokens
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.access import Principal, Role
from pruning_server.token_command import run_token_command


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_each_token_is_its_principals(path: Path) -> None:
    tokens = {
        name: add_token(path, name, role)
        for name, role in (("alice", Role.SUBMIT), ("bob@example", Role.READ), ("operator", Role.ADMIN))
    }
    second = add_token(path, "alice", Role.READ)
    book = TokenFile(path, ManualClock())
    assert book.find(tokens["alice"]) == Principal("alice", Role.SUBMIT)
    assert book.find(second) == Principal("alice", Role.READ)
    assert book.find(tokens["operator"]) == Principal("operator", Role.ADMIN)
    for wrong in ("", "x", tokens["alice"] + "x", tokens["alice"][:-1], hash_token(tokens["alice"]), "\udc80"):
        assert book.find(wrong.encode("utf-8", "replace").decode()) is None


def test_only_hashes_are_kept_and_only_this_user_reads_them(path: Path) -> None:
    token = add_token(path, "alice", Role.SUBMIT)
    assert token not in path.read_text()
    assert len(token) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_new_token_counts_and_a_removed_one_does_not_without_a_restart(path: Path) -> None:
    clock = ManualClock()
    first = add_token(path, "alice", Role.SUBMIT)
    book = TokenFile(path, clock)
    second = add_token(path, "bob", Role.READ)
    assert book.find(second) is None, "the file is looked at once a second"
    clock.advance(1.0)
    assert book.find(second) == Principal("bob", Role.READ)
    assert remove_tokens(path, "alice") == 1
    clock.advance(1.0)
    assert book.find(first) is None
    assert remove_tokens(path, "bob") == 1
    clock.advance(1.0)
    assert book.find(second) is None, "an emptied file lets nobody in"


def test_a_file_that_breaks_changes_nothing_and_the_log_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    token = add_token(path, "alice", Role.SUBMIT)
    book = TokenFile(path, clock)
    path.write_text(f"alice submit {token}\n")  # the token itself, where its hash belongs
    clock.advance(1.0)
    with caplog.at_level(logging.ERROR):
        assert book.find(token) == Principal("alice", Role.SUBMIT)
    assert "line 1" in caplog.text
    assert token not in caplog.text
    path.unlink()
    clock.advance(1.0)
    assert book.find(token) == Principal("alice", Role.SUBMIT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no entry"),
        ("# nobody\n\n", "no entry"),
        ("alice submit\n", "line 1"),
        ("\nalice owner sha256:" + "a" * 64, "line 2"),
        ("alice submit sha256:" + "A" * 64, "line 1"),
        ("certificate:alice submit sha256:" + "a" * 64, "line 1"),
        ("alice submit md5:" + "a" * 64, "line 1"),
        ("alice submit sha256:" + "a" * 64 + "\nbob read sha256:" + "a" * 64, "twice"),
        ("älice submit sha256:" + "a" * 64, "plain text"),
    ],
)
def test_files_that_cannot_be_used(content: str, words: str, path: Path) -> None:
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InvalidRequestError, match=words):
        TokenFile(path, ManualClock())


def test_a_file_that_everybody_may_write_is_refused(path: Path) -> None:
    add_token(path, "alice", Role.SUBMIT)
    path.chmod(0o602)
    with pytest.raises(InvalidRequestError, match="may write"):
        TokenFile(path, ManualClock())


def test_comments_and_a_link_are_fine(path: Path) -> None:
    token = add_token(path, "alice", Role.SUBMIT)
    path.write_text("# our callers\n\n" + path.read_text())
    link = path.with_name("link")
    link.symlink_to(path)
    assert TokenFile(link, ManualClock()).find(token) is not None
    add_token(link, "bob", Role.READ)
    assert link.is_symlink()
    assert {entry.principal.name for entry in read_entries(path)} == {"alice", "bob"}


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 65, "-a", "ä", "a\n"])
def test_names_that_are_none(name: str, path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="NAME"):
        add_token(path, name, Role.READ)
    assert not path.exists()


def test_the_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"PRUNING_TOKEN_FILE": str(path)}
    assert run_token_command(["add", "alice", "--role", "read"], environ) == 0
    token = capsys.readouterr().out.strip()
    assert TokenFile(path, ManualClock()).find(token) == Principal("alice", Role.READ)
    assert run_token_command(["list"], environ) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("alice read sha256:")
    assert hash_token(token) not in shown
    assert run_token_command(["remove", "nobody"], environ) == 1
    assert run_token_command(["remove", "alice", "--token-file", str(path)], {}) == 0
    assert read_entries(path) == ()
    for argv in ([], ["add"], ["add", "a", "--role", "king"], ["list", "--all"]):
        with pytest.raises(InvalidRequestError):
            run_token_command(argv, environ)
    with pytest.raises(InvalidRequestError, match="--token-file"):
        run_token_command(["list"], {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read(path: Path) -> None:
    add_token(path, "alice", Role.READ)
    path.chmod(0o000)
    with pytest.raises(InvalidRequestError, match="cannot read"):
        TokenFile(path, ManualClock())
