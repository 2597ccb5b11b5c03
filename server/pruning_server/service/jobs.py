"""The PruningJobService: protobuf to the jobs room and back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from pruning_api.v1 import pruning_job_pb2, pruning_job_service_pb2, pruning_job_service_pb2_grpc
from pruning_server.errors import Reason, UnavailableError
from pruning_server.jobs.devices import CPU
from pruning_server.jobs.events import Event, Snapshot, StateEvent
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.model import JobState
from pruning_server.jobs.ports import Clock, Metrics
from pruning_server.jobs.service import JobService
from pruning_server.service import converters_common as common
from pruning_server.service import converters_jobs as converters
from pruning_server.service.converters_inspection import inspection_from_wire, inspection_to_wire
from pruning_server.service.converters_spec import spec_from_wire
from pruning_server.service.principal import caller_of, principal_of
from pruning_server.service.stalls import StallWatch
from pruning_server.spec import ranges
from pruning_server.spec.problems import Problem, invalid, missing, refuse
from pruning_server.spec.request import PruningSpec
from pruning_server.spec.validation import find_label_problems

MAX_REQUEST_ID_CHARACTERS = 128
# A job must fit into one message of a list or a watch, together with what its runs add to it.
MAX_SPEC_BYTES = 2**20
MAX_PAGE_BYTES = 3 * 2**20
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class ServerFacts:
    """What GetServerInfo says besides what the workers say about themselves."""

    version: str
    max_artifact_bytes: int
    queue_capacity_jobs: int
    max_attempts: int
    retention_seconds: float
    default_timeout_seconds: float
    cpu_slots: int
    cuda_slots_per_device: int
    sandboxed: bool
    heartbeat_seconds: float


class PruningJobServicer(pruning_job_service_pb2_grpc.PruningJobServiceServicer):
    """Jobs over the wire. A call that ends never cancels a job."""

    def __init__(
        self,
        service: JobService,
        inspections: InspectionService,
        facts: ServerFacts,
        metrics: Metrics,
        clock: Clock,
        stalls: StallWatch,
    ) -> None:
        self._service = service
        self._inspections = inspections
        self._facts = facts
        self._metrics = metrics
        self._clock = clock
        self._stalls = stalls
        self._watches = _Watches()

    def end_watches(self) -> None:
        """Ends every watch, those to come included: the server stops, and its callers go on with its successor."""
        self._watches.end()

    def CreatePruningJob(
        self, request: pruning_job_service_pb2.CreatePruningJobRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.CreatePruningJobResponse:
        """Queues a job, once per request_id, or only checks it."""
        labels = dict(request.labels)
        spec = self._spec(request, labels)
        owner = principal_of(context)
        ended = _ended(context)
        if request.validate_only:
            job = self._service.validate(owner, spec, labels, ended, files_pending=request.files_pending)
        else:
            job = self._service.submit(owner, request.request_id, spec, labels, ended)
        return pruning_job_service_pb2.CreatePruningJobResponse(job=converters.job_to_wire(job))

    def GetPruningJob(
        self, request: pruning_job_service_pb2.GetPruningJobRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.GetPruningJobResponse:
        """Returns a job as it is."""
        job = self._service.get(caller_of(context).job_scope, request.job_id)
        return pruning_job_service_pb2.GetPruningJobResponse(job=converters.job_to_wire(job))

    def ListPruningJobs(
        self, request: pruning_job_service_pb2.ListPruningJobsRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.ListPruningJobsResponse:
        """Returns a page of jobs, newest first; shorter than asked for where the jobs would not fit a message."""
        states, labels, owner = _states(request), dict(request.labels), caller_of(context).job_scope
        page_size: int = min(request.page_size, MAX_PAGE_SIZE)
        while True:
            jobs, token = self._service.list(owner, states, labels, page_size, request.page_token)
            messages = [converters.job_to_wire(job) for job in jobs]
            if len(messages) <= 1 or sum(message.ByteSize() for message in messages) <= MAX_PAGE_BYTES:
                return pruning_job_service_pb2.ListPruningJobsResponse(jobs=messages, next_page_token=token)
            page_size = max(1, len(messages) // 2)

    def WatchPruningJob(
        self, request: pruning_job_service_pb2.WatchPruningJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pruning_job_service_pb2.WatchPruningJobResponse]:
        """Streams a snapshot and then what happens, until the job has ended or the server stops."""
        after, ended = request.after_sequence, False
        with self._watches.opened(context) as stop, self._stalls.watch(context.cancel) as stall:
            sequence, heartbeat_seconds = after, self._facts.heartbeat_seconds
            owner = caller_of(context).job_scope
            for item in self._service.watch(owner, request.job_id, after, stop, heartbeat_seconds):
                message = self._event(item, sequence)
                sequence, ended = message.sequence, _is_last(item, after)
                with stall.waiting():  # whoever reads nothing for long gives the place back, and can go on later
                    yield pruning_job_service_pb2.WatchPruningJobResponse(event=message)
        if not ended and self._watches.ended:
            raise UnavailableError(Reason.DRAINING, "the server is stopping; the job goes on. Watch it again later")

    def CancelPruningJob(
        self, request: pruning_job_service_pb2.CancelPruningJobRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.CancelPruningJobResponse:
        """Stops a job and its worker."""
        job = self._service.cancel(caller_of(context).job_scope, request.job_id)
        return pruning_job_service_pb2.CancelPruningJobResponse(job=converters.job_to_wire(job))

    def DeletePruningJob(
        self, request: pruning_job_service_pb2.DeletePruningJobRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.DeletePruningJobResponse:
        """Deletes a job that has ended."""
        self._service.delete(caller_of(context).job_scope, request.job_id)
        return pruning_job_service_pb2.DeletePruningJobResponse()

    def InspectModel(
        self, request: pruning_job_service_pb2.InspectModelRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.InspectModelResponse:
        """Looks into a model, in a process of its own that ends with the call."""
        asked = inspection_from_wire(request)
        return inspection_to_wire(self._inspections.inspect(principal_of(context), asked, _ended(context)))

    def ListStrategies(
        self, request: pruning_job_service_pb2.ListStrategiesRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.ListStrategiesResponse:
        """Returns what the workers can do."""
        strategies = self._service.probe().strategies
        return pruning_job_service_pb2.ListStrategiesResponse(
            strategies=[converters.strategy_info_to_wire(info) for info in strategies]
        )

    def GetServerInfo(
        self, request: pruning_job_service_pb2.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pruning_job_service_pb2.GetServerInfoResponse:
        """Returns versions, devices and limits."""
        probe, facts = self._service.probe(), self._facts
        return pruning_job_service_pb2.GetServerInfoResponse(
            version=facts.version,
            torch_version=probe.torch_version,
            python_version=probe.python_version,
            devices=[
                converters.device_to_wire(
                    device, facts.cpu_slots if device.name == CPU else facts.cuda_slots_per_device
                )
                for device in probe.devices
            ],
            max_artifact_bytes=facts.max_artifact_bytes,
            queue_capacity_jobs=facts.queue_capacity_jobs,
            max_attempts=facts.max_attempts,
            retention=common.duration(facts.retention_seconds),
            default_timeout=common.duration(facts.default_timeout_seconds),
            sandboxed=facts.sandboxed,
        )

    def _spec(self, request: pruning_job_service_pb2.CreatePruningJobRequest, labels: Mapping[str, str]) -> PruningSpec:
        problems = [*_request_id(request), *find_label_problems(labels)]
        if request.spec.ByteSize() > MAX_SPEC_BYTES:
            problems.append(invalid("spec", f"is larger than {MAX_SPEC_BYTES} bytes; name fewer layers"))
        return spec_from_wire(request.spec, problems)

    def _event(self, item: Snapshot | Event | None, sequence: int) -> pruning_job_pb2.PruningJobEvent:
        match item:
            case Snapshot():
                return converters.snapshot_to_wire(item, self._clock.now())
            case Event():
                return converters.event_to_wire(item)
            case None:
                return converters.heartbeat_to_wire(sequence, self._clock.now())


def _request_id(request: pruning_job_service_pb2.CreatePruningJobRequest) -> Iterator[Problem]:
    if request.request_id:
        why = ranges.text(1, MAX_REQUEST_ID_CHARACTERS, what="the id")(request.request_id)
        if why is not None:
            yield invalid("request_id", why)
    elif not request.validate_only:
        yield missing("request_id", "is needed; send a new UUID, and the same one again where you repeat the call")


def _states(request: pruning_job_service_pb2.ListPruningJobsRequest) -> frozenset[JobState]:
    findings, states = common.Findings(), set[JobState]()
    for index, number in enumerate(request.states):
        state = findings.member(common.JOB_STATES, number, f"states[{index}]")
        if state is not None:
            states.add(state)
        elif number == 0:
            findings.add(invalid(f"states[{index}]", f"must be one of {common.JOB_STATES.names()}"))
    refuse(findings.problems)
    return frozenset(states)


def _is_last(item: Snapshot | Event | None, after_sequence: int) -> bool:
    """Whether nothing can follow."""
    match item:
        case Snapshot(job=job):
            return job.state.is_terminal and job.last_sequence == after_sequence
        case Event(payload=StateEvent(state=state)):
            return state.is_terminal
        case _:
            return False


def _ended(context: grpc.ServicerContext) -> threading.Event:
    """Returns what is set once the call has ended, whoever ended it."""
    ended = threading.Event()
    # False: the call has ended before this line, so nobody would call back.
    if not context.add_callback(ended.set):
        ended.set()
    return ended


class _Watches:
    """The watches that go on, so that all of them can be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[threading.Event] = set()
        self.ended = False

    @contextmanager
    def opened(self, context: grpc.ServicerContext) -> Iterator[threading.Event]:
        """Yields what is set once the caller has left or the server stops."""
        stop = _ended(context)
        with self._lock:
            self._open.add(stop)
            if self.ended:
                stop.set()
        try:
            yield stop
        finally:
            with self._lock:
                self._open.discard(stop)

    def end(self) -> None:
        """Sets all of them, and every later one at once."""
        with self._lock:
            self.ended = True
            for stop in self._open:
                stop.set()
