"""Mutated archives, datasets and requests by the thousand: nothing dies, nothing hangs, every answer has a type; `make fuzz`.

Archives and datasets go through the gate's own functions, in child processes, so that a death is counted and not ours. Some
of what the gate takes is inspected by a real server, and so loaded and run by a real worker in its sandbox; requests go to
the same server as bytes. Whatever fails is kept in the corpus, which runs first the next time. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import grpc
import numpy as np

from helpers.archives import GOOD, repacked
from helpers.mutations import mutated_archive, mutated_dataset, mutated_message
from helpers.running_server import RunningServer
from pruning_api.v1 import artifact_service_pb2 as artifacts
from pruning_api.v1 import pruning_job_service_pb2 as jobs
from pruning_client import PruningClient, PruningClientError
from pruning_server.archive.dataset import check_dataset
from pruning_server.archive.model import check_model
from pruning_server.errors import InvalidArtifactError

HANG_SECONDS = 10
MEMORY_BYTES = 4 << 30
BATCH = 200
ARRAYS: dict[str, Any] = {"inputs": np.ones((64, 8), np.float32), "targets": np.arange(64) % 3}
_FAILED = ("DEATH", "HANG", "UNTYPED")
# Of gRPC itself, for bytes that are no message; everything else names a reason.
_NO_MESSAGE = "Exception deserializing request"

Make = Callable[[Random], bytes]
Check = Callable[[bytes], str]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archives", type=int, default=5000)
    parser.add_argument("--datasets", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--inspections", type=int, default=60, help="of what the gate takes of mutated archives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path(".bench/fuzz"))
    options = parser.parse_args(arguments)
    options.corpus.mkdir(parents=True, exist_ok=True)
    good = [make() for make, _ in GOOD.values()]
    taken: list[bytes] = []
    counts = _fuzz("archives", options, options.archives, lambda chance: mutated_archive(chance, good), _archive, taken)
    counts += _fuzz("datasets", options, options.datasets, lambda chance: mutated_dataset(chance, ARRAYS), _dataset, [])
    with tempfile.TemporaryDirectory() as folder:
        server = RunningServer(Path(folder) / "data").start()
        try:
            with closing(PruningClient(server.address)) as client:
                client.server_info()  # waits for the probe
            counts += _requests(server, options)
            counts += _inspect(server, Path(folder), taken[: options.inspections])
            alive = server.process is not None and server.process.poll() is None
        finally:
            server.stop()
    failed = sum(count for name, count in counts.items() if name.startswith(_FAILED)) + (not alive)
    print(f"server {'alive' if alive else 'DEAD'}; {failed} failed", flush=True)
    return 1 if failed else 0


def _archive(data: bytes) -> str:
    try:
        check_model(io.BytesIO(data))
        repacked(data)
    except InvalidArtifactError as error:
        return error.reason.value
    return "taken"


def _dataset(data: bytes) -> str:
    try:
        check_dataset(io.BytesIO(data))
    except InvalidArtifactError as error:
        return error.reason.value
    return "taken"


def _fuzz(
    what: str, options: argparse.Namespace, count: int, make: Make, check: Check, taken: list[bytes]
) -> collections.Counter[str]:
    """Checks the corpus, then `count` mutations; seeds are numbers, so that a batch that died can be made anew."""
    kept = [path.read_bytes() for path in sorted(options.corpus.glob(f"{what}-*"))]
    files: Callable[[int], bytes] = lambda number: (  # noqa: E731
        kept[number] if number < len(kept) else make(Random(f"{options.seed} {what} {number}"))
    )
    counts = collections.Counter[str]()
    start, slowest = time.monotonic(), 0.0
    number, total = 0, count + len(kept)
    while number < total:
        answers, ended = _in_child(range(number, min(number + BATCH, total)), files, check)
        for given, seconds in answers:
            slowest = max(slowest, seconds)
            answer = "HANG" if seconds > HANG_SECONDS else given
            counts[answer] += 1
            data = files(number)
            if answer == "taken":
                taken.append(data)
            elif answer.startswith(_FAILED):
                _keep(options.corpus, what, data)
            number += 1
        if ended is not None:
            counts[ended] += 1
            _keep(options.corpus, what, files(number))
            number += 1
    seconds = time.monotonic() - start
    print(f"{what}: {total} in {seconds:.0f} s, slowest {slowest:.2f} s, {dict(counts.most_common())}", flush=True)
    return counts


def _keep(corpus: Path, what: str, data: bytes) -> None:
    (corpus / f"{what}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)


def _in_child(
    numbers: range, files: Callable[[int], bytes], check: Check
) -> tuple[list[tuple[str, float]], str | None]:
    """The answers with their seconds, and how the child ended if it did not finish."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            _answer_all(numbers, files, check, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        found = [line.rsplit(" ", 1) for line in lines]
    _, status = os.waitpid(child, 0)
    ended = None if status == 0 else "HANG" if os.WTERMSIG(status) == signal.SIGALRM else f"DEATH {status}"
    return [(answer, float(seconds)) for answer, seconds in found], ended


def _answer_all(numbers: range, files: Callable[[int], bytes], check: Check, writer: int) -> NoReturn:
    for number in numbers:
        data = files(number)
        signal.alarm(2 * HANG_SECONDS)
        start = time.monotonic()
        try:
            answer = check(data)
        except Exception as error:  # noqa: BLE001 - all that is no refusal is what is looked for
            answer = f"UNTYPED {type(error).__name__}"
        os.write(writer, f"{answer} {time.monotonic() - start}\n".encode())
    os._exit(0)


def _calls() -> list[tuple[str, jobs.CreatePruningJobRequest]]:
    """Unary calls, each with a request to begin with."""
    services = [(artifacts, "ArtifactService"), (jobs, "PruningJobService")]
    found = []
    for module, name in services:
        service = module.DESCRIPTOR.services_by_name[name]
        for method in service.methods:
            if not method.client_streaming and not method.server_streaming:
                message = getattr(module, method.input_type.name)()
                found.append((f"/{service.full_name}/{method.name}", message))
    return found


def _requests(server: RunningServer, options: argparse.Namespace) -> collections.Counter[str]:
    counts = collections.Counter[str]()
    start, slowest = time.monotonic(), 0.0
    calls = _calls()
    with grpc.insecure_channel(server.address) as channel:
        for number in range(options.requests):
            chance = Random(f"{options.seed} requests {number}")
            path, message = chance.choice(calls)
            began = time.monotonic()
            counts[_send(channel, path, mutated_message(chance, message))] += 1
            slowest = max(slowest, time.monotonic() - began)
    seconds = time.monotonic() - start
    print(f"requests: {options.requests} in {seconds:.0f} s, slowest {slowest:.2f} s, {dict(counts.most_common())}")
    return counts


def _send(channel: grpc.Channel, path: str, data: bytes) -> str:
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(data, timeout=HANG_SECONDS)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"HANG {path}"
        if code is grpc.StatusCode.INTERNAL and _NO_MESSAGE in details:
            return "no message"
        typed = "grpc-status-details-bin" in dict(error.trailing_metadata() or ())
        is_ours = code not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL} and typed
        return code.name if is_ours else f"UNTYPED {path} {code.name} {details[:100]}"
    return "OK"


def _inspect(server: RunningServer, folder: Path, archives: Sequence[bytes]) -> collections.Counter[str]:
    """Loads and runs what the gate takes: the worker may die, and its death has a name."""
    counts = collections.Counter[str]()
    start = time.monotonic()
    data = folder / "data.npz"
    np.savez(data, inputs=ARRAYS["inputs"])
    with closing(PruningClient(server.address)) as client:
        for number, archive in enumerate(archives):
            path = folder / f"{number}.pt"
            path.write_bytes(archive)
            try:
                client.inspect(path, samples=data)
                counts["inspected"] += 1
            except PruningClientError as error:
                reason = getattr(error, "reason", None)
                counts[str(reason) if reason else f"UNTYPED {type(error).__name__}: {error}"] += 1
    print(f"inspections: {len(archives)} in {time.monotonic() - start:.0f} s, {dict(counts.most_common())}", flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
