"""A server under ten times the load that it can take, with stuck watchers, and with jobs cancelled; `make bench-overload`.

Real server process, real stores, real gate; only the workers are stand-ins, so that the load is the server's own. Nothing
here retries: every refusal is counted. The traffic stays on 127.0.0.1. Exit code 1 if a promise is missed.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from helpers import standin_server
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import children_of
from helpers.running_server import RunningServer
from helpers.stores import RESULT, ManualClock, OpenStores, create_job, open_sqlite
from pruning_api.v1 import pruning_job_pb2, pruning_job_service_pb2_grpc, spec_pb2
from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_client import ArtifactKind, PruningClient
from pruning_server.jobs.model import JobState

SLOTS = 2
QUEUE = 20
JOB_SECONDS = 0.2
OVERLOAD = 10
# Else this side takes megabytes that nobody asked for yet, and the server's threads never stand.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]
TERMINAL = {
    pruning_job_pb2.JOB_STATE_SUCCEEDED,
    pruning_job_pb2.JOB_STATE_FAILED,
    pruning_job_pb2.JOB_STATE_CANCELLED,
}


class World:
    """A server, and what it takes to submit to it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.server = RunningServer(folder / "data", *flags, program=standin_server.PROGRAM)
        self._folder = folder

    def __enter__(self) -> Self:
        self.server.start()
        self.channel = grpc.insecure_channel(self.server.address)
        self.jobs = pruning_job_service_pb2_grpc.PruningJobServiceStub(self.channel)
        inputs, targets = table_data()
        np.savez(self._folder / "data.npz", inputs=inputs, targets=targets)
        save_scripted(mlp(), self._folder / "model.pt")
        with PruningClient(self.server.address) as client:
            model = client.upload_artifact(self._folder / "model.pt", ArtifactKind.TORCHSCRIPT).artifact_id
            data = client.upload_artifact(self._folder / "data.npz", ArtifactKind.DATASET).artifact_id
        self.model, self.data = (spec_pb2.ArtifactSource(artifact_id=found) for found in (model, data))
        self.finish([self.submit()])  # the first one waits for the probe and the gate
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.server.stop()

    def submit(self, *behaviours: str) -> str:
        """Queues a job and returns its id."""
        spec = spec_pb2.PruningSpec(
            model=self.model,
            validation=self.data,
            static=spec_pb2.StaticStrategy(),
            sparsity=0.5,
            device="cpu",
            exclude_layers=behaviours,
        )
        request = api.CreatePruningJobRequest(request_id=str(uuid.uuid4()), spec=spec)
        return self.jobs.CreatePruningJob(request, timeout=120).job.job_id

    def get(self, job_id: str) -> pruning_job_pb2.PruningJob:
        """Returns a job."""
        return self.jobs.GetPruningJob(api.GetPruningJobRequest(job_id=job_id), timeout=60).job

    def cancel(self, job_id: str) -> pruning_job_pb2.PruningJob:
        """Cancels a job."""
        return self.jobs.CancelPruningJob(api.CancelPruningJobRequest(job_id=job_id), timeout=60).job

    def finish(self, job_ids: list[str]) -> collections.Counter[str]:
        """Waits for the jobs and counts how they ended."""
        ended = collections.Counter[str]()
        for job_id in job_ids:
            while (state := self.get(job_id).state) not in TERMINAL:
                time.sleep(0.05)
            ended[pruning_job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")] += 1
        return ended


def percentile(seconds: list[float], share: float) -> float:
    """The smallest value that at least this share is not above."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def line(what: str, seconds: list[float]) -> str:
    """How long things took, in milliseconds."""
    p50, p99 = (1000 * percentile(seconds, share) for share in (0.5, 0.99))
    return f"{what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {1000 * max(seconds):.1f} ms of {len(seconds)}"


def overload(folder: Path, seconds: float, submissions_per_second: float | None) -> bool:
    """Submissions at ten times the rate at which jobs end, Gets meanwhile; everything accepted must finish."""
    with World(folder, "--cpu-slots", str(SLOTS), "--queue-capacity", str(QUEUE)) as world:
        start = time.monotonic()
        world.finish([world.submit(f"slow={JOB_SECONDS}") for _ in range(4 * SLOTS)])
        rate = 4 * SLOTS / (time.monotonic() - start)
        offered, probe = submissions_per_second or OVERLOAD * rate, world.submit()
        print(
            f"jobs per second: {rate:.2f}; submissions per second offered: {offered:.1f}, for {seconds:g} s", flush=True
        )
        accepted: list[str] = []
        codes = collections.Counter[str]()
        submits, gets = list[float](), list[float]()

        def submit() -> None:
            began = time.monotonic()
            try:
                accepted.append(world.submit(f"slow={JOB_SECONDS}"))
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
            submits.append(time.monotonic() - began)

        def get() -> None:
            began = time.monotonic()
            world.get(probe)
            gets.append(time.monotonic() - began)

        with ThreadPoolExecutor(64) as pool:
            paced(pool, seconds, (submit, offered), (get, 20.0))
        ended = world.finish(accepted)
        print(line("Get", gets))
        print(line("submissions, refused ones included", submits))
        print(f"answers: {dict(codes)}; accepted ones ended: {dict(ended)}", flush=True)
        only = set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
        return percentile(gets, 0.99) < 0.1 and only and set(ended) == {"SUCCEEDED"} and len(accepted) > 0


def paced(pool: ThreadPoolExecutor, seconds: float, *tasks: tuple[Callable[[], None], float]) -> None:
    """Starts each task so often per second, whether earlier ones have ended or not."""
    start = time.monotonic()
    due = [0.0 for _ in tasks]
    while (now := time.monotonic() - start) < seconds:
        for index, (task, rate) in enumerate(tasks):
            while due[index] <= now:
                pool.submit(task)
                due[index] += 1 / rate
        time.sleep(max(0.0, min(due) - (time.monotonic() - start)))


def watchers(folder: Path, count: int) -> bool:
    """Streams that nobody reads, each with more to say than fits on the way; submissions are timed beside them."""
    flags = ("--cpu-slots", "1", "--max-watches", str(count + 20), "--queue-capacity", "500")
    with World(folder, *flags) as world:
        world.submit("silent")  # the only slot: what is submitted later stays queued
        wide = world.submit(*(f"{'x' * 400}.{index}" for index in range(400)))
        alone = [timed(world.submit) for _ in range(100)]
        with stuck(world, wide, count) as open_streams:
            time.sleep(2.0)
            beside = [timed(world.submit) for _ in range(100)]
            print(line("submit alone", alone))
            print(line(f"submit beside {open_streams()} stuck watchers", beside), flush=True)
            good = open_streams() == count
        return good and percentile(beside, 0.99) < 0.1


@contextmanager
def stuck(world: World, job_id: str, count: int) -> Iterator[Callable[[], int]]:
    """Opens watches that are never read; yields what counts those that are still open."""
    channels = [grpc.insecure_channel(world.server.address, NARROW) for _ in range(10)]
    calls: list[Any] = []
    for index in range(count):
        stub = pruning_job_service_pb2_grpc.PruningJobServiceStub(channels[index % len(channels)])
        call = stub.WatchPruningJob(api.WatchPruningJobRequest(job_id=job_id))
        call.initial_metadata()  # by then the server has sent the first message, or has begun to
        calls.append(call)
    try:
        yield lambda: sum(call.is_active() for call in calls)
    finally:
        for call in calls:
            call.cancel()
        for channel in channels:
            channel.close()


def timed(call: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    start = time.monotonic()
    call()
    return time.monotonic() - start


def cancels(folder: Path, queued: int, running: int) -> bool:
    """From the call until the job is CANCELLED and, where it ran, its process is gone."""
    with World(folder, "--cpu-slots", "1", "--queue-capacity", "1000") as world:
        blocker = world.submit("silent")
        waiting = [world.submit("silent") for _ in range(queued)]
        quick = [timed(lambda job_id=job_id: world.cancel(job_id)) for job_id in waiting]
        still = [job_id for job_id in waiting if world.get(job_id).state != pruning_job_pb2.JOB_STATE_CANCELLED]
        print(line("cancel while queued", quick), f"; not cancelled at once: {len(still)}", flush=True)
        world.cancel(blocker)
        world.finish([blocker])
        taken = [_cancel_running(world) for _ in range(running)]
        print(line("cancel while running, process gone", taken), flush=True)
        return not still and percentile(quick, 0.99) < 1.0 and percentile(taken, 0.99) < 3.0


def _cancel_running(world: World) -> float:
    job_id = world.submit("silent")
    while not children_of(world.server.pid) or world.get(job_id).state != pruning_job_pb2.JOB_STATE_RUNNING:
        time.sleep(0.02)
    time.sleep(0.5)
    pids = children_of(world.server.pid)
    start = time.monotonic()
    world.cancel(job_id)
    while world.get(job_id).state not in TERMINAL or set(pids) & set(children_of(world.server.pid)):
        time.sleep(0.01)
    return time.monotonic() - start


def races(folder: Path, count: int) -> bool:
    """Cancel against finish, at the job store: each job ends once, and as what its last event says."""
    stores = open_sqlite(folder, ManualClock())
    start, outcomes, chance = time.monotonic(), collections.Counter[str](), random.Random(0)
    with ThreadPoolExecutor(2) as pool:
        for number in range(count):
            # Whoever comes last through a barrier goes on first; a head start of up to 2 ms evens that out.
            delays = (0.0, chance.uniform(0.0, 0.002))
            outcomes[race(stores, f"r{number}", pool, chance.sample(delays, 2))] += 1
    stores.close()
    took = time.monotonic() - start
    print(f"cancel against finish, {count} races in {took:.0f} s: {dict(outcomes)}", flush=True)
    return set(outcomes) == {JobState.CANCELLED, JobState.SUCCEEDED}


def race(stores: OpenStores, request_id: str, pool: ThreadPoolExecutor, delays: Sequence[float]) -> str:
    """One race; returns the state in which the job ended, or what was wrong."""
    job, _ = create_job(stores.jobs, request_id)
    if stores.jobs.claim(("cpu",), "server-1") is None:
        return "not claimed"
    ready = threading.Barrier(2)

    def cancel() -> None:
        ready.wait()
        time.sleep(delays[0])
        stores.jobs.request_cancel(job.owner, job.job_id)

    def finish() -> None:
        ready.wait()
        time.sleep(delays[1])
        stores.jobs.succeed(job.job_id, 1, RESULT)

    for done in [pool.submit(cancel), pool.submit(finish)]:
        done.result()
    # A cancel that came first leaves CANCELLING until the run reports; then it has ended.
    stores.jobs.succeed(job.job_id, 1, RESULT)
    states = stores.states(job.job_id)
    ended = [state for state in states if state.is_terminal]
    events = [event.sequence for event in stores.events(job.job_id)]
    if len(ended) != 1 or states[-1] is not ended[0] or events != list(range(1, len(events) + 1)):
        return f"broken: {states}"
    return stores.jobs.get(None, job.job_id).state if ended[0] is stores.jobs.get(None, job.job_id).state else "differs"


def main() -> int:
    """Runs the parts that are asked for; returns 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["overload", "watchers", "cancels", "races"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="submissions per second (default: ten times as many as jobs end)")
    parser.add_argument("--watchers", type=int, default=500)
    parser.add_argument("--cancels", type=int, nargs=2, default=(300, 30), metavar=("QUEUED", "RUNNING"))
    parser.add_argument("--races", type=int, default=10_000)
    options = parser.parse_args()
    parts: dict[str, Callable[[Path], bool]] = {
        "overload": lambda folder: overload(folder, options.seconds, options.rate),
        "watchers": lambda folder: watchers(folder, options.watchers),
        "cancels": lambda folder: cancels(folder, *options.cancels),
        "races": lambda folder: races(folder, options.races),
    }
    good = True
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            kept = parts[name](Path(folder))
        print(f"{name}: {'kept' if kept else 'MISSED'}", flush=True)
        good &= kept
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
