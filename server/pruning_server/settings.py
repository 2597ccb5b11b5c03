"""Everything that an operator can set, from flags and `PRUNING_*` variables; a flag wins over its variable.

Each setting is declared once, in `Settings`: its flag, its variable (`--queue-capacity`: `PRUNING_QUEUE_CAPACITY`), how
its text is read, and its help.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints
from urllib.parse import unquote, urlsplit

from pruning_server import __version__
from pruning_server.errors import InvalidRequestError
from pruning_server.setting_texts import (
    parse_address,
    parse_boolean,
    parse_duration,
    parse_file,
    parse_folder,
    parse_level,
    parse_networks,
    parse_pause,
    parse_size,
    parse_uri_prefixes,
    whole_number,
)

DAY_SECONDS = 24 * 3600.0
MEMORY_SHARE = 0.8
CORES_PER_CPU_SLOT = 4


@dataclass(frozen=True)
class Option:
    """How a setting is given: its flag, what reads its text (a ValueError says what to change), and its help."""

    flag: str
    read: Callable[[str], Any]
    help: str
    metavar: str = ""
    # Whether the flag may come more than once; its texts are joined by commas.
    repeats: bool = False

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning."""
        return "PRUNING_" + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.read is parse_boolean


@dataclass(frozen=True)
class Machine:
    """What defaults are derived from."""

    cores: int
    memory_bytes: int
    cuda_devices: int
    data_home: Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one server runs with. Names carry units; every value is set, whatever the operator left out.

    A setting without a default here is derived from the machine, in `_derived`.
    """

    address: Annotated[
        str, Option("--address", parse_address, "where to serve gRPC; port 0: any free", "HOST:PORT")
    ] = "127.0.0.1:50051"
    metrics_address: Annotated[
        str, Option("--metrics-address", parse_address, "where to serve Prometheus", "HOST:PORT")
    ] = "127.0.0.1:9464"
    data_dir: Annotated[
        Path,
        Option(
            "--data-dir",
            parse_folder,
            "jobs and artifacts; made if missing; for one server at a time, on a local disk"
            " (default: pruning-service in $XDG_DATA_HOME or ~/.local/share)",
            "DIR",
        ),
    ]
    tls_cert: Annotated[
        Path | None, Option("--tls-cert", parse_file, "PEM certificate chain of the server", "FILE")
    ] = None
    tls_key: Annotated[Path | None, Option("--tls-key", parse_file, "PEM key of the certificate", "FILE")] = None
    tls_client_ca: Annotated[
        Path | None,
        Option("--tls-client-ca", parse_file, "PEM certificates that must have signed those of clients", "FILE"),
    ] = None
    token_file: Annotated[
        Path | None,
        Option(
            "--token-file",
            parse_file,
            "who may call, as made by `pruning-server token add`; read anew when it changes",
            "FILE",
        ),
    ] = None
    insecure_no_tls: Annotated[
        bool, Option("--insecure-no-tls", parse_boolean, "serve other machines without TLS, e.g. behind a proxy")
    ] = False
    insecure_no_sandbox: Annotated[
        bool, Option("--insecure-no-sandbox", parse_boolean, "run workers without the kernel's sandbox")
    ] = False
    queue_capacity: Annotated[
        int, Option("--queue-capacity", whole_number(1, 1_000_000), "jobs that may wait", "N")
    ] = 100
    max_attempts: Annotated[
        int, Option("--max-attempts", whole_number(1, 100), "runs of a job whose worker dies, the first included", "N")
    ] = 3
    retention_seconds: Annotated[
        float, Option("--retention", parse_duration, "how long jobs and files are kept", "TIME")
    ] = 7 * DAY_SECONDS
    upload_retention_seconds: Annotated[
        float, Option("--upload-retention", parse_duration, "how long an unfinished upload is kept", "TIME")
    ] = DAY_SECONDS
    job_timeout_seconds: Annotated[
        float, Option("--job-timeout", parse_duration, "of a job that sets none", "TIME")
    ] = DAY_SECONDS
    load_timeout_seconds: Annotated[float, Option("--load-timeout", parse_duration, "for loading a model", "TIME")] = (
        60.0
    )
    observe_timeout_seconds: Annotated[
        float, Option("--observe-timeout", parse_duration, "for running a model to learn its shapes", "TIME")
    ] = 60.0
    gate_timeout_seconds: Annotated[
        float, Option("--gate-timeout", parse_duration, "for checking one file", "TIME")
    ] = 120.0
    drain_timeout_seconds: Annotated[
        float, Option("--drain-timeout", parse_pause, "how long running jobs may go on after SIGTERM", "TIME")
    ] = 10.0
    cpu_slots: Annotated[
        int,
        Option(
            "--cpu-slots",
            whole_number(1, 1024),
            "jobs that run on the CPU at a time (default: a quarter of the cores)",
            "N",
        ),
    ]
    cuda_slots_per_device: Annotated[
        int, Option("--cuda-slots-per-device", whole_number(1, 64), "jobs that run on each GPU at a time", "N")
    ] = 1
    threads_per_job: Annotated[
        int, Option("--threads-per-job", whole_number(1, 1024), "of one worker (default: the cores / --cpu-slots)", "N")
    ]
    memory_per_job_bytes: Annotated[
        int,
        Option(
            "--memory-per-job",
            parse_size,
            "most that one worker may use (default: 80 %% of the memory / slots)",
            "SIZE",
        ),
    ]
    max_artifact_bytes: Annotated[
        int, Option("--max-artifact-bytes", parse_size, "largest file that may be uploaded", "SIZE")
    ] = 16 * 2**30
    max_bytes_per_principal: Annotated[
        int | None,
        Option("--max-bytes-per-principal", parse_size, "of files, of one caller (default: no bound)", "SIZE"),
    ] = None
    max_queued_per_principal: Annotated[
        int | None,
        Option(
            "--max-queued-per-principal",
            whole_number(1, 1_000_000),
            "jobs of one caller that may wait (default: no bound but the queue's)",
            "N",
        ),
    ] = None
    max_running_per_principal: Annotated[
        int | None,
        Option(
            "--max-running-per-principal",
            whole_number(1, 100_000),
            "jobs of one caller that run at a time (default: no bound)",
            "N",
        ),
    ] = None
    requests_per_second: Annotated[
        int | None,
        Option(
            "--requests-per-second",
            whole_number(1, 1_000_000),
            "of one caller, sustained (default: no bound)",
            "N",
        ),
    ] = None
    allow_uri: Annotated[
        tuple[str, ...],
        Option(
            "--allow-uri",
            parse_uri_prefixes,
            "a prefix, https://HOST/FOLDER/ or file:///FOLDER/, of files that requests may name instead of sending them;"
            " again, or with commas, for more (default: none)",
            "PREFIX",
            repeats=True,
        ),
    ] = ()
    allow_uri_network: Annotated[
        tuple[str, ...],
        Option(
            "--allow-uri-network",
            parse_networks,
            "addresses that hosts of --allow-uri may have although they are not public, e.g. 10.1.0.0/16; again, or with"
            " commas, for more (default: none)",
            "NETWORK",
            repeats=True,
        ),
    ] = ()
    uri_timeout_seconds: Annotated[float, Option("--uri-timeout", parse_duration, "for fetching one file", "TIME")] = (
        600.0
    )
    max_watches: Annotated[int, Option("--max-watches", whole_number(1, 10_000), "watches at a time", "N")] = 256
    max_transfers: Annotated[
        int, Option("--max-transfers", whole_number(1, 1000), "uploads and downloads at a time", "N")
    ] = 32
    log_level: Annotated[str, Option("--log-level", parse_level, "DEBUG, INFO, WARNING or ERROR", "LEVEL")] = "INFO"


def options() -> dict[str, Option]:
    """Returns every option, by the name of its setting."""
    hints = get_type_hints(Settings, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def load_settings(argv: Sequence[str], environ: Mapping[str, str], machine: Machine) -> Settings:
    """Returns the settings that flags, variables and the machine give, in this order of precedence.

    Raises:
        InvalidRequestError: a value cannot be read, is out of range, or does not fit another one.
        SystemExit: after --help or --version.
    """
    given = {name: value for name, value in vars(_parser().parse_args(argv)).items() if value is not None}
    values: dict[str, Any] = {}
    for name, option in options().items():
        source, text = (option.flag, given[name]) if name in given else (option.variable, environ.get(option.variable))
        text = ",".join(text) if isinstance(text, list) else text
        if not text:  # An empty variable is what a compose file leaves where nothing is set.
            continue
        try:
            values[name] = option.read(text)
        except ValueError as error:
            raise InvalidRequestError.for_field(source, str(error)) from error
    settings = Settings(**(_derived(values, machine) | values))
    _check(settings)
    return settings


def this_machine(environ: Mapping[str, str]) -> Machine:
    """Looks at the machine: its cores and memory as far as this process may use them, its GPUs, the home folder."""
    home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local/share")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = Path("/proc/driver/nvidia/gpus")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=min(memory_bytes, _memory_limit_bytes() or memory_bytes),
        cuda_devices=len(list(devices.iterdir())) if devices.is_dir() else 0,
        data_home=Path(home),
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Parser(argparse.ArgumentParser):
    """Reports errors as everything else of the server does."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting."""
        raise InvalidRequestError.for_field("command line", message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pruning-server",
        description="Prunes TorchScript models over gRPC.",
        epilog="Every flag has a variable: --queue-capacity is PRUNING_QUEUE_CAPACITY. TIME: 90, 90s, 15m, 24h, 7d."
        " SIZE: bytes, or 512MiB, 16GiB, 2GB. Tokens of callers: pruning-server token --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pruning-server {__version__}")
    for name, option in options().items():
        if option.is_switch:
            parser.add_argument(option.flag, dest=name, action="store_const", const="true", help=option.help)
        else:
            action = "append" if option.repeats else "store"
            parser.add_argument(option.flag, dest=name, metavar=option.metavar, action=action, help=_help(name, option))
    return parser


def _help(name: str, option: Option) -> str:
    default = Settings.__dataclass_fields__[name].default
    if default is MISSING or default in {None, ()}:
        return option.help
    return f"{option.help} (default: {_shown(default)})"


def _shown(default: object) -> str:
    match default:
        case float():
            return f"{default / DAY_SECONDS:g}d" if default >= DAY_SECONDS else f"{default:g}s"
        case int() if default >= 2**30:
            return f"{default // 2**30}GiB"
        case _:
            return str(default)


def _derived(values: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """What the machine gives for the settings without a fixed default."""
    cpu_slots: int = values.get("cpu_slots", max(1, machine.cores // CORES_PER_CPU_SLOT))
    per_device: int = values.get(
        "cuda_slots_per_device", Settings.__dataclass_fields__["cuda_slots_per_device"].default
    )
    slots = cpu_slots + machine.cuda_devices * per_device
    return {
        "data_dir": machine.data_home / "pruning-service",
        "cpu_slots": cpu_slots,
        "threads_per_job": max(1, machine.cores // cpu_slots),
        "memory_per_job_bytes": int(MEMORY_SHARE * machine.memory_bytes / slots),
    }


def _check(settings: Settings) -> None:
    """Checks what no value shows by itself."""
    for prefix in settings.allow_uri:
        folder = Path(unquote(urlsplit(prefix).path))
        data = settings.data_dir
        if prefix.startswith("file:") and (data.is_relative_to(folder) or folder.is_relative_to(data)):
            raise InvalidRequestError.for_field(
                "--allow-uri", f"{prefix} reaches into --data-dir, where others' files lie"
            )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidRequestError.for_field("--tls-cert", "goes together with --tls-key; give both or neither")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise InvalidRequestError.for_field("--tls-client-ca", "needs --tls-cert and --tls-key")
    if not is_loopback(settings.address) and settings.tls_cert is None and not settings.insecure_no_tls:
        raise InvalidRequestError.for_field(
            "--address",
            f"other machines can reach {settings.address}, so TLS is needed: give --tls-cert and --tls-key, or"
            " --insecure-no-tls where something in front of the server encrypts and authenticates",
        )


def _memory_limit_bytes() -> int | None:
    """The limit of this process's control group, as a container sets it; None without one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
