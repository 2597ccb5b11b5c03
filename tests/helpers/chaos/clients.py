"""One client that does anything at random, over the generated stubs, and records what it was told."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import google_crc32c
import grpc

from helpers.chaos.history import Deleting, Fetched, History, JobMade, JobSeen, Listed, Missing, Stored, Watched
from pruning_api.v1 import artifact_pb2, pruning_job_pb2, spec_pb2
from pruning_api.v1 import artifact_service_pb2 as files
from pruning_api.v1 import pruning_job_service_pb2 as jobs
from pruning_api.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from pruning_api.v1.pruning_job_service_pb2_grpc import PruningJobServiceStub

CALL_SECONDS = 5.0
WATCH_SECONDS = 1.5
PAUSE_SECONDS = 0.06
BLOCK_BYTES = 8000
# Few contents that come again and again, so that files are shared, deleted and made anew.
SHARED_CONTENTS = 12
# Whether there was anything to do.
Action = Callable[["Client", random.Random], bool]
PHASES = ("LOAD", "OBSERVE", "BASELINE", "PLAN", "PRUNE", "RECOVER", "VERIFY", "EVALUATE", "EXPORT")


@dataclass
class Shared:
    """What all clients know: where the server is, and what there is to act upon."""

    history: History
    model: str = ""
    data: str = ""
    address: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    job_ids: list[str] = field(default_factory=list)
    artifact_ids: list[str] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    faults_are_on: bool = False


class Client:
    """Everything that it does is one call of a server that may die during it."""

    def __init__(self, shared: Shared, address: str, seconds: float = CALL_SECONDS) -> None:
        self.shared = shared
        self._seconds = seconds
        self.address = address
        # Else every channel of this process to a port shares one connection, and its pause between attempts.
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.files, self.jobs = ArtifactServiceStub(self._channel), PruningJobServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def upload(self, content: bytes, kind: int, *, stop_at: int | None = None) -> str:
        """Announces and sends a file from where it stands; `stop_at`: leaves after so many bytes."""
        sha256 = hashlib.sha256(content).hexdigest()
        request = files.CreateArtifactRequest(kind=kind, size_bytes=len(content), sha256=sha256)  # type: ignore[arg-type]
        with self.shared.history.call() as record:
            artifact = self.files.CreateArtifact(request, timeout=self._seconds).artifact
            if artifact.state != artifact_pb2.ARTIFACT_STATE_ACTIVE:
                blocks = _blocks(artifact, content, stop_at)
                artifact = self.files.WriteArtifact(blocks, timeout=self._seconds).artifact
            if artifact.state == artifact_pb2.ARTIFACT_STATE_ACTIVE:
                record(Stored(subject=artifact.artifact_id, sha256=sha256))
        return artifact.artifact_id

    def fetch(self, artifact_id: str) -> None:
        """Downloads it whole."""
        digest, request = hashlib.sha256(), files.ReadArtifactRequest(artifact_id=artifact_id)
        with self._about(artifact_id) as record:
            for answer in self.files.ReadArtifact(request, timeout=self._seconds):
                digest.update(answer.data)
            record(Fetched(subject=artifact_id, sha256=digest.hexdigest()))

    def delete_artifact(self, artifact_id: str) -> None:
        with self.shared.history.call() as record:
            record(Deleting(subject=artifact_id))
        self.files.DeleteArtifact(files.DeleteArtifactRequest(artifact_id=artifact_id), timeout=self._seconds)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, request_id: str, seed: int) -> str:
        """Asks for the job that this request and seed mean."""
        spec = spec_pb2.PruningSpec(
            model=spec_pb2.ArtifactSource(artifact_id=self.shared.model),
            validation=spec_pb2.ArtifactSource(artifact_id=self.shared.data),
            static=spec_pb2.StaticStrategy(),
            sparsity=0.5,
            device="cpu",
            seed=seed,
            recovery=spec_pb2.Recovery(disabled=True),
            exclude_layers=_behaviours(random.Random(seed)),
        )
        request = jobs.CreatePruningJobRequest(request_id=request_id, spec=spec)
        with self.shared.history.call() as record:
            job = self.jobs.CreatePruningJob(request, timeout=self._seconds).job
            record(JobMade(subject=job.job_id, request_id=request_id))
            record(_seen(job))
        return job.job_id

    def get(self, job_id: str) -> pruning_job_pb2.PruningJob:
        with self._about(job_id) as record:
            job = self.jobs.GetPruningJob(jobs.GetPruningJobRequest(job_id=job_id), timeout=self._seconds).job
            record(_seen(job))
        return job

    def cancel(self, job_id: str) -> None:
        with self._about(job_id) as record:
            record(
                _seen(
                    self.jobs.CancelPruningJob(jobs.CancelPruningJobRequest(job_id=job_id), timeout=self._seconds).job
                )
            )

    def delete_job(self, job_id: str) -> None:
        with self.shared.history.call() as record:
            record(Deleting(subject=job_id))
        self.jobs.DeletePruningJob(jobs.DeletePruningJobRequest(job_id=job_id), timeout=self._seconds)

    def list_jobs(self) -> list[pruning_job_pb2.PruningJob]:
        """All pages."""
        found: list[pruning_job_pb2.PruningJob] = []
        token = ""
        with self.shared.history.call() as record:
            while True:
                request = jobs.ListPruningJobsRequest(page_size=50, page_token=token)
                page = self.jobs.ListPruningJobs(request, timeout=self._seconds)
                found += page.jobs
                token = page.next_page_token
                if not token:
                    break
            for job in found:
                record(_seen(job))
            record(Listed(subject="", jobs=frozenset(job.job_id for job in found)))
        return found

    def watch(self, job_id: str, after: int, *, to_the_end: bool = False) -> None:
        """Watches for a while; whatever came before it broke off is recorded."""
        seconds = self._seconds if to_the_end else WATCH_SECONDS
        request = jobs.WatchPruningJobRequest(job_id=job_id, after_sequence=after)
        events: list[tuple[int, str, str]] = []
        with self._about(job_id) as record:
            try:
                answers = self.jobs.WatchPruningJob(request, timeout=seconds)
                events.extend(event for answer in answers if (event := _event(answer.event)) is not None)
            finally:
                record(Watched(subject=job_id, after=after, events=tuple(events), is_whole=to_the_end))

    def _about(self, subject: str) -> _About:
        return _About(self.shared.history, subject)


class _About:
    """A call about one job or artifact; NOT_FOUND is a fact, too."""

    def __init__(self, history: History, subject: str) -> None:
        self._call = history.call()
        self._subject = subject

    def __enter__(self) -> Callable[..., None]:
        self._record = self._call.__enter__()
        return self._record

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.NOT_FOUND:
            self._record(Missing(subject=self._subject))
        self._call.__exit__(None, None, None)


def act_forever(shared: Shared, seed: int, complain: Callable[[str], None]) -> None:
    """Does one thing after the other until `shared.stopping`."""
    chance = random.Random(seed)
    client = Client(shared, shared.address)
    while not shared.stopping.is_set():
        if client.address != shared.address:
            client.close()
            client = Client(shared, shared.address)
        name, action = chance.choices(ACTIONS, WEIGHTS)[0]
        try:
            shared.calls[name] += action(client, chance)
        except grpc.RpcError as error:
            shared.calls[error.code().name] += 1
            if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS} and not shared.faults_are_on:
                complain(f"{name}: {error.code().name}: {error.details()}")
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                _await_next_server(shared, client.address)
        time.sleep(chance.uniform(0, PAUSE_SECONDS))
    client.close()


def _await_next_server(shared: Shared, address: str) -> None:
    deadline = time.monotonic() + 0.3
    while shared.address == address and not shared.stopping.is_set() and time.monotonic() < deadline:
        time.sleep(0.02)


def _submit(client: Client, chance: random.Random) -> bool:
    requests = client.shared.requests
    if requests and chance.random() < 0.3:
        request_id = chance.choice(list(requests))
    else:
        request_id = f"{chance.getrandbits(64):x}"
        requests[request_id] = chance.randrange(10**6)
    client.shared.job_ids.append(client.submit(request_id, requests[request_id]))
    return True


def _upload(client: Client, chance: random.Random) -> bool:
    number = chance.randrange(SHARED_CONTENTS) if chance.random() < 0.4 else chance.randrange(10**6)
    content = random.Random(number).randbytes(500 + number % 60_000)
    stop_at = chance.randrange(len(content)) if chance.random() < 0.2 else None
    client.shared.artifact_ids.append(client.upload(content, artifact_pb2.ARTIFACT_KIND_DATASET, stop_at=stop_at))
    return True


def _on_job(action: Callable[[Client, str], object]) -> Action:
    def act(client: Client, chance: random.Random) -> bool:
        if ids := client.shared.job_ids:
            # The newest ones are those that something happens to.
            action(client, chance.choice(ids[-15:] if chance.random() < 0.7 else ids))
        return bool(ids)

    return act


def _on_artifact(action: Callable[[Client, str], object]) -> Action:
    def act(client: Client, chance: random.Random) -> bool:
        if ids := client.shared.artifact_ids:
            action(client, chance.choice(ids))
        return bool(ids)

    return act


def _fetch_result(client: Client, chance: random.Random) -> bool:
    if ids := client.shared.job_ids:
        job = client.get(chance.choice(ids))
        if job.result.model_artifact_id:
            client.fetch(chance.choice([job.result.model_artifact_id, job.result.report_artifact_id]))
            return True
    return False


ACTIONS: tuple[tuple[str, Action], ...] = (
    ("submit", _submit),
    ("upload", _upload),
    ("watch", _on_job(lambda client, job_id: client.watch(job_id, 0))),
    ("get", _on_job(lambda client, job_id: client.get(job_id))),
    ("cancel", _on_job(lambda client, job_id: client.cancel(job_id))),
    ("list", lambda client, _: bool(client.list_jobs())),
    ("fetch", _on_artifact(lambda client, artifact_id: client.fetch(artifact_id))),
    ("fetch result", _fetch_result),
    ("delete job", _on_job(lambda client, job_id: client.delete_job(job_id))),
    ("delete artifact", _on_artifact(lambda client, artifact_id: client.delete_artifact(artifact_id))),
)
WEIGHTS = (18, 18, 10, 12, 5, 8, 10, 6, 4, 5)


def _behaviours(chance: random.Random) -> tuple[str, ...]:
    """How the stand-in for this job's worker behaves; a job dies or kills in its first attempt only."""
    phase = chance.choice(PHASES)
    fault = chance.choices(("", "segfault", f"die_in={phase}", f"kill_server_in={phase}", "slow=0.3"), (8, 1, 2, 2, 2))[
        0
    ]
    return ("own_report", fault) if fault else ("own_report",)


def _blocks(
    artifact: artifact_pb2.Artifact, content: bytes, stop_at: int | None
) -> Iterator[files.WriteArtifactRequest]:
    end = len(content) if stop_at is None else max(stop_at, artifact.committed_size_bytes)
    offsets = range(artifact.committed_size_bytes, end, BLOCK_BYTES) or [artifact.committed_size_bytes]
    for offset in offsets:
        data = content[offset : min(offset + BLOCK_BYTES, end)]
        is_last = offset == offsets[-1] and stop_at is None
        yield files.WriteArtifactRequest(
            artifact_id=artifact.artifact_id,
            offset=offset,
            data=data,
            crc32c=google_crc32c.value(data),
            finish_write=is_last,
        )


def _seen(job: pruning_job_pb2.PruningJob) -> JobSeen:
    state = pruning_job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
    return JobSeen(subject=job.job_id, state=state, attempt=job.attempt, max_attempts=job.max_attempts)


def _event(event: pruning_job_pb2.PruningJobEvent) -> tuple[int, str, str] | None:
    """Its number, its content and the state that it names; None for what has no number of its own."""
    kind = event.WhichOneof("event")
    if kind in {"snapshot", "heartbeat"}:
        return None
    content = hashlib.sha256(event.SerializeToString(deterministic=True)).hexdigest()[:16]
    state = pruning_job_pb2.JobState.Name(event.state.state).removeprefix("JOB_STATE_") if kind == "state" else ""
    return event.sequence, content, state
