"""kill -9 of the server amid 20 real jobs at random moments; run by `make bench-crash`.

After the last restart every job must reach a terminal state, exactly once, with gap-free events, and no worker may be
left over. The traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from helpers.models import fitted, mlp, save_scripted, table_data
from helpers.running_server import RunningServer
from pruning_client import JobState, PruningClient, Snapshot, Sparsity, StateChange, Static, Submission

TERMINAL = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def submission(folder: Path, seed: int) -> Submission:
    """A small real job: a net that was trained on the data that comes with it."""
    inputs, targets = table_data()
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    model = save_scripted(fitted(mlp(), inputs, targets, epochs=5), folder / "model.pt")
    return Submission(
        model=model, validation=folder / "data.npz", strategy=Static(), target=Sparsity(0.5), seed=seed, epochs=2
    )


def workers_of(data_dir: Path) -> list[int]:
    """Processes whose command line names the data folder's jobs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if str(data_dir / "jobs").encode() in line:
                found.append(int(entry.name))
    return found


def main() -> int:
    """Submits, kills, restarts, waits and checks; returns 0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline-seconds", type=float, default=500.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RunningServer(folder / "data", "--cpu-slots", "2").start()
        with PruningClient(server.address) as client:
            jobs = [client.submit(submission(folder, seed)).job_id for seed in range(options.jobs)]
        for _ in range(options.kills):
            time.sleep(rng.uniform(1.0, 6.0))
            server.kill()
            orphans_until = time.monotonic() + 10
            while workers_of(server.data_dir) and time.monotonic() < orphans_until:
                time.sleep(0.05)
            print(f"killed; workers left: {len(workers_of(server.data_dir))}", flush=True)
            server.start()
        deadline = time.monotonic() + options.deadline_seconds
        with PruningClient(server.address) as client:
            while time.monotonic() < deadline and any(job.state not in TERMINAL for job in client.list()):
                time.sleep(1)
            states = {job.job_id: job.state for job in client.list()}
            good = sorted(states) == sorted(jobs) and all(state in TERMINAL for state in states.values())
            for job_id in jobs:
                events = [event for event in client.watch(job_id) if not isinstance(event.body, Snapshot)]
                good &= [event.sequence for event in events] == list(range(1, len(events) + 1))
                ends = [e for e in events if isinstance(e.body, StateChange) and e.body.state in TERMINAL]
                good &= len(ends) == 1
        print(dict(collections.Counter(state.value for state in states.values())))
        print("all terminal, once each, events gap-free" if good else "SOMETHING WAS LOST", flush=True)
        server.stop()
        good &= not workers_of(server.data_dir)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
