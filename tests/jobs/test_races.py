"""Cancel against finish, with real stores; `make bench-overload` runs ten thousand of them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.stores import ManualClock, open_sqlite
from overload import race
from pruning_server.jobs.model import JobState


def test_each_job_ends_once_and_as_its_last_event_says(tmp_path: Path) -> None:
    stores, chance = open_sqlite(tmp_path, ManualClock()), random.Random(0)
    with ThreadPoolExecutor(2) as pool:
        for number in range(150):
            delays = chance.sample((0.0, chance.uniform(0.0, 0.002)), 2)
            assert race(stores, f"r{number}", pool, delays) in {JobState.CANCELLED, JobState.SUCCEEDED}
    stores.close()
