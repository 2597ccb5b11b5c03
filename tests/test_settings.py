"""Settings: each from its flag or its variable, derived where nothing is said, refused where it makes no sense."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pruning_server.errors import InvalidRequestError
from pruning_server.setting_texts import parse_address, parse_duration, parse_pause, parse_size
from pruning_server.settings import Machine, Settings, is_loopback, load_settings, options, this_machine

GIB = 2**30
MACHINE = Machine(cores=8, memory_bytes=16 * GIB, cuda_devices=0, data_home=Path("/home/somebody/.local/share"))


def load(*argv: str, machine: Machine = MACHINE, **environ: str) -> Settings:
    return load_settings(argv, environ, machine)


def test_defaults() -> None:
    settings = load()
    assert (settings.address, settings.metrics_address) == ("127.0.0.1:50051", "127.0.0.1:9464")
    assert settings.data_dir == Path("/home/somebody/.local/share/pruning-service")
    assert (settings.queue_capacity, settings.max_attempts) == (100, 3)
    assert (settings.retention_seconds, settings.job_timeout_seconds) == (7 * 86400, 86400)
    assert (settings.load_timeout_seconds, settings.observe_timeout_seconds) == (60, 60)
    assert settings.max_artifact_bytes == 16 * GIB
    assert (settings.cpu_slots, settings.threads_per_job, settings.cuda_slots_per_device) == (2, 4, 1)
    assert settings.memory_per_job_bytes == int(0.8 * 16 * GIB / 2)
    assert not settings.insecure_no_tls
    assert settings.tls_cert is None


@pytest.mark.parametrize(
    ("cores", "gpus", "flags", "slots", "threads", "memory"),
    [
        (1, 0, [], 1, 1, 12.8),
        (2, 0, [], 1, 2, 12.8),
        (16, 4, [], 4, 4, 1.6),
        (4, 0, ["--cpu-slots", "4"], 4, 1, 3.2),
        (2, 1, ["--cuda-slots-per-device", "3"], 1, 2, 3.2),
        (2, 0, ["--cpu-slots", "5"], 5, 1, 2.56),
    ],
)
def test_what_the_machine_gives(
    cores: int, gpus: int, flags: list[str], slots: int, threads: int, memory: float
) -> None:
    machine = dataclasses.replace(MACHINE, cores=cores, cuda_devices=gpus)
    settings = load(*flags, machine=machine)
    assert (settings.cpu_slots, settings.threads_per_job) == (slots, threads)
    assert settings.memory_per_job_bytes == pytest.approx(memory * GIB, abs=1)


# A text per kind of value, and what it becomes.
SAMPLES: dict[str, tuple[str, Any]] = {
    "str": ("127.0.0.1:7", "127.0.0.1:7"),
    "Path": ("/tmp", Path("/tmp")),
    "bool": ("true", True),
    "int": ("7", 7),
    "float": ("90", 90.0),
}


def sample(name: str) -> tuple[str, Any]:
    kind = "Path" if name == "data_dir" else type(getattr(load(), name)).__name__
    if name == "log_level":
        return "debug", "DEBUG"
    return SAMPLES.get(kind, SAMPLES["int"])


# Absent by default, so that their type does not show.
OPTIONAL: dict[str, tuple[str, Any]] = {
    "max_bytes_per_principal": ("2GiB", 2 * GIB),
    "max_queued_per_principal": ("7", 7),
    "max_running_per_principal": ("7", 7),
    "requests_per_second": ("7", 7),
    "allow_uri": ("https://a.example/b/,file:///c/", ("https://a.example/b/", "file:///c/")),
    "allow_uri_network": ("10.0.0.0/8,::1", ("10.0.0.0/8", "::1")),
}
FILES = ("tls_cert", "tls_key", "tls_client_ca", "token_file")
ORDINARY = [name for name in options() if name not in FILES and name not in OPTIONAL]


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_optional_settings(name: str) -> None:
    option, (text, value) = options()[name], OPTIONAL[name]
    assert not getattr(load(), name)
    assert getattr(load(**{option.variable: text}), name) == value
    assert getattr(load(option.flag, text), name) == value


def test_repeated_flags_add_up() -> None:
    prefixes = ("https://a.example/", "http://b.example:8080/c/")
    assert load("--allow-uri", prefixes[0], "--allow-uri", prefixes[1]).allow_uri == prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        "https://a.example",
        "https:///b/",
        "a.example/b/",
        "s3://bucket/",
        "file://host/b/",
        "https://me:secret@a.example/",
        "https://a.example/?q=/",
        "https://a.example/%2e%2e/",
    ],
)
def test_prefixes_that_say_too_little(prefix: str) -> None:
    with pytest.raises(InvalidRequestError, match="must end with a slash"):
        load("--allow-uri", prefix)


@pytest.mark.parametrize("name", ORDINARY)
def test_every_setting_has_a_flag_and_a_variable(name: str) -> None:
    option = options()[name]
    text, value = sample(name)
    kind = "PosixPath" if isinstance(value, Path) else type(value).__name__
    assert kind == type(getattr(load(), name)).__name__
    assert option.variable == "PRUNING_" + option.flag[2:].upper().replace("-", "_")
    assert getattr(load(**{option.variable: text}), name) == value
    flag = [option.flag] if option.is_switch else [option.flag, text]
    assert getattr(load(*flag), name) == value


def test_flags_and_settings_are_the_same_set() -> None:
    assert set(options()) == {field.name for field in dataclasses.fields(Settings)}
    flags = [option.flag for option in options().values()]
    assert len(set(flags)) == len(flags)
    contract = {
        "--address",
        "--metrics-address",
        "--data-dir",
        "--insecure-no-tls",
        "--insecure-no-sandbox",
        "--tls-cert",
    }
    assert contract <= set(flags)


def test_a_flag_wins_over_its_variable() -> None:
    assert load("--queue-capacity", "5", PRUNING_QUEUE_CAPACITY="6").queue_capacity == 5
    assert load(PRUNING_QUEUE_CAPACITY="6").queue_capacity == 6


def test_an_empty_variable_says_nothing() -> None:
    assert load(PRUNING_QUEUE_CAPACITY="", PRUNING_TLS_CERT="").queue_capacity == 100


def test_a_variable_can_switch_off() -> None:
    assert not load(PRUNING_INSECURE_NO_TLS="false").insecure_no_tls
    assert load(PRUNING_INSECURE_NO_TLS="1", PRUNING_ADDRESS="0.0.0.0:1").insecure_no_tls


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--queue-capacity", "0"], ["--queue-capacity", "1"]),
        (["--queue-capacity", "many"], ["whole number"]),
        (["--queue-capacity", "1.5"], ["whole number"]),
        (["--queue-capacity", "-1"], ["--queue-capacity"]),
        (["--max-attempts", "101"], ["from 1 to 100"]),
        (["--retention", "soon"], ["7d"]),
        (["--retention", "0"], ["above 0"]),
        (["--job-timeout", "2000d"], ["year"]),
        (["--job-timeout", "nan"], ["not a time"]),
        (["--memory-per-job", "0"], ["at least 1"]),
        (["--memory-per-job", "lots"], ["GiB"]),
        (["--address", "127.0.0.1"], ["HOST:PORT"]),
        (["--address", "127.0.0.1:99999"], ["HOST:PORT"]),
        (["--metrics-address", ":9464"], ["HOST:PORT"]),
        (["--log-level", "loud"], ["DEBUG"]),
        (["--data-dir", "/dev/null"], ["not a folder"]),
        (["--tls-cert", "/no/such/file"], ["no file"]),
        (["--surprise"], ["--surprise"]),
        (["--queue"], ["--queue"]),
        (["stray"], ["stray"]),
    ],
)
def test_bad_values_are_refused_and_named(argv: list[str], words: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load(*argv)
    for word in words:
        assert word in caught.value.message


def test_a_bad_variable_is_named_as_such() -> None:
    with pytest.raises(InvalidRequestError, match="PRUNING_CPU_SLOTS"):
        load(PRUNING_CPU_SLOTS="none")


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "pruning.example.org:443"])
def test_other_machines_need_tls(address: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="--insecure-no-tls"):
        load("--address", address)
    assert load("--address", address, "--insecure-no-tls").address == address
    pem = tmp_path / "pem"
    pem.touch()
    assert load("--address", address, "--tls-cert", str(pem), "--tls-key", str(pem)).tls_key == pem


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.1.2.3:5", "[::1]:5", "localhost:5", "unix:/tmp/socket"])
def test_this_machine_does_not(address: str) -> None:
    assert is_loopback(address)
    assert load("--address", address).address == address


def test_tls_files_go_together(tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    pem.touch()
    for flags in (["--tls-cert", str(pem)], ["--tls-key", str(pem)], ["--tls-client-ca", str(pem)]):
        with pytest.raises(InvalidRequestError, match="--tls-"):
            load(*flags)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("15m", 900), ("24H", 86400), (" 7d ", 604800), ("365d", 31536000)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_no_time_at_all() -> None:
    assert parse_pause("0") == 0
    assert load("--drain-timeout", "0s").drain_timeout_seconds == 0


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("1kB", 1000), ("512MiB", 512 * 2**20), ("16gib", 16 * GIB), ("1.5GiB", 3 * 2**29)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["unix:", "a b:1", "::1:5", "host:", "host:1:2", "[::1:5", "127.0.0.1:5\n"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_this_machine_is_seen() -> None:
    machine = this_machine({"HOME": "/home/x"})
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**26
    assert machine.data_home == Path("/home/x/.local/share")
    assert this_machine({"XDG_DATA_HOME": "/data"}).data_home == Path("/data")


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(option.flag in shown for option in options().values())
    assert "default: 7d" in shown
    assert "80 %" in shown
