"""Gives queued jobs to free devices, one thread per running job, and keeps house."""

from __future__ import annotations

import logging
import threading
import uuid
from dataclasses import dataclass

from pruning_server.errors import Reason, UnavailableError
from pruning_server.jobs.devices import DeviceSlots, device_type
from pruning_server.jobs.housekeeping import Housekeeper
from pruning_server.jobs.model import Failure
from pruning_server.jobs.ports import ArtifactStore, Clock, Executor, JobStore, Metrics, ProbeSource
from pruning_server.jobs.run import Run

# The scheduler is woken whenever a job comes or ends; the pulse only bounds the harm of a fault of the database.
PULSE_SECONDS = 5.0
FAULT_PAUSE_SECONDS = 1.0
PROBE_PAUSE_SECONDS = 0.5
KILL_GRACE_SECONDS = 15.0
NO_THREAD_MESSAGE = "The server could not start a thread for the job; the job is queued again."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SchedulerOptions:
    """How many jobs run at a time on the CPU, on each CUDA device and of one owner, and how often the house is kept."""

    cpu_slots: int = 1
    cuda_slots_per_device: int = 1
    max_running_per_owner: int | None = None
    housekeeping_interval_seconds: float = 300.0


class Scheduler:
    """Runs queued jobs: `start` recovers what a dead server left and goes on, `stop` puts running jobs back.

    One thread claims jobs; each run has a thread of its own, because the kernel ends a worker with the *thread* that
    started it (PR_SET_PDEATHSIG), and because a run may then simply block.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        artifacts: ArtifactStore,
        executor: Executor,
        probe: ProbeSource,
        metrics: Metrics,
        clock: Clock,
        options: SchedulerOptions,
    ) -> None:
        self._store = store
        self._executor = executor
        self._probe = probe
        self._metrics = metrics
        self._clock = clock
        self._options = options
        self._housekeeper = Housekeeper(store, artifacts, options.housekeeping_interval_seconds)
        # Random per start: leases of any other owner are those of a server that is gone.
        self.lease_owner = uuid.uuid4().hex
        self._work = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[Run, threading.Thread]] = {}
        self._slots: DeviceSlots | None = None
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        """Settles the runs of dead servers, then claims jobs in the background as soon as the devices are known."""
        for job in self._store.recover(self.lease_owner):
            _log.warning("job %s was running when the server died; it is %s now", job.job_id, job.state.value)
            if job.state.is_terminal:
                self._metrics.job_completed(job, device_type(job.device))
        self._thread.start()
        self._housekeeper.start()

    def stop(self, grace_seconds: float) -> None:
        """Claims no more, gives runs `grace_seconds` to end by themselves, then kills them and queues their jobs again.

        Such a run costs the job no attempt: it did nothing wrong. If the server is killed before it could do that,
        `recover` does it at the next start, and the attempt is spent, since then nobody can tell the two apart.
        """
        self._stopping.set()
        self._work.set()
        self._housekeeper.stop()
        deadline = self._clock.monotonic() + max(0.0, grace_seconds)
        if self._thread.is_alive():
            self._thread.join(timeout=KILL_GRACE_SECONDS)
        self._join_runs(deadline)
        for run in self._current_runs():
            run.release()
        self._join_runs(self._clock.monotonic() + KILL_GRACE_SECONDS)

    def wake(self) -> None:
        """Looks for a job to run now."""
        self._work.set()

    def cancel(self, job_id: str) -> None:
        """Stops the run of this job, if it runs here; the store already says CANCELLING."""
        with self._lock:
            entry = self._runs.get(job_id)
        if entry is not None:
            entry[0].cancel()

    def workers(self) -> dict[str, int]:
        """How many runs go on (`running`), and how many are being ended (`stopping`)."""
        runs = self._current_runs()
        stopping = sum(run.is_stopping for run in runs)
        return {"running": len(runs) - stopping, "stopping": stopping}

    def heartbeat_age_seconds(self) -> float:
        """Age of the oldest last message among the runs; 0 without one."""
        return max((run.silence_seconds() for run in self._current_runs()), default=0.0)

    def device_usage(self) -> dict[str, tuple[int, int]]:
        """Per device: (slots used, slots); empty until the probe has answered."""
        return self._slots.usage() if self._slots is not None else {}

    # --- the scheduler's thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                slots = self._slots or self._open_slots()
                while slots is not None and not self._stopping.is_set() and self._start_next(slots):
                    pass
                self._work.wait(PULSE_SECONDS if slots is not None else PROBE_PAUSE_SECONDS)
                self._work.clear()
            except Exception:  # noqa: BLE001 - see below
                # A fault of the database must not end scheduling for good; the pause keeps the log readable.
                _log.exception("the scheduler could not look for work; it tries again")
                self._stopping.wait(FAULT_PAUSE_SECONDS)

    def _open_slots(self) -> DeviceSlots | None:
        """Learns the devices, and fails the queued jobs that wait for one that is not there (any more)."""
        try:
            probe = self._probe.get(PROBE_PAUSE_SECONDS)
        except UnavailableError:
            return None
        slots = DeviceSlots(
            probe.devices,
            cpu_slots=self._options.cpu_slots,
            cuda_slots_per_device=self._options.cuda_slots_per_device,
        )
        known = ", ".join(slots.names())
        failure = Failure(
            reason=Reason.UNKNOWN_DEVICE,
            message=f"The job waited for a device that this server does not have (any more). It has {known}; submit again.",
        )
        for job in self._store.fail_unservable(slots.names(), failure):
            self._metrics.job_completed(job, device_type(job.device))
        self._slots = slots
        return slots

    def _start_next(self, slots: DeviceSlots) -> bool:
        free = slots.free()
        most = self._options.max_running_per_owner
        claimed = self._store.claim(free, self.lease_owner, most) if free else None
        if claimed is None:
            return False
        job, device = claimed
        run = Run(job, device, store=self._store, executor=self._executor, metrics=self._metrics, clock=self._clock)
        thread = threading.Thread(target=self._execute, args=(run, slots), name=f"run-{job.job_id[:8]}", daemon=True)
        slots.lease(device)
        with self._lock:
            self._runs[job.job_id] = (run, thread)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: the machine is out of them for now
            self._forget(run, slots)
            self._store.release(job.job_id, job.attempt, Failure(reason=Reason.INTERNAL, message=NO_THREAD_MESSAGE))
            raise
        return True

    def _execute(self, run: Run, slots: DeviceSlots) -> None:
        try:
            run.execute()
        finally:
            self._forget(run, slots)
            self._work.set()

    def _forget(self, run: Run, slots: DeviceSlots) -> None:
        with self._lock:
            del self._runs[run.job.job_id]
        slots.give_back(run.device)

    def _current_runs(self) -> list[Run]:
        with self._lock:
            return [run for run, _ in self._runs.values()]

    def _join_runs(self, deadline: float) -> None:
        with self._lock:
            threads = [thread for _, thread in self._runs.values()]
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - self._clock.monotonic()))
