"""A clock that jumps forth and back: nothing that is needed goes, and no history goes wrong."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from helpers.stores import (
    DAY_SECONDS,
    FAILURE,
    OWNER,
    RESULT,
    RETENTION_SECONDS,
    ManualClock,
    OpenStores,
    announce,
    create_job,
    open_sqlite,
    random_bytes,
    read,
    spec_for,
    upload,
)
from pruning_server.errors import NotFoundError
from pruning_server.jobs.model import TRANSITIONS

JUMPS = (-400 * DAY_SECONDS, -3600.0, -1.0, 0.0, 1.0, 3600.0, 400 * DAY_SECONDS)


def keep_house(stores: OpenStores) -> None:
    stores.jobs.delete_expired()
    stores.artifacts.collect_garbage()


@pytest.mark.parametrize("seed", range(4))
def test_jobs_that_go_on_outlast_any_jump_and_their_histories_stay_sound(tmp_path: Path, seed: int) -> None:
    chance, clock = random.Random(seed), ManualClock()
    stores = open_sqlite(tmp_path, clock)
    made: list[str] = []
    for number in range(60):
        clock.advance(chance.choice(JUMPS))
        match chance.randrange(5):
            case 0 | 1:
                made.append(create_job(stores.jobs, str(number))[0].job_id)
            case 2:
                stores.jobs.claim(("cpu",), "server")
            case 3 if made:
                stores.jobs.succeed(chance.choice(made), 1, RESULT)
            case 4 if made:
                stores.jobs.fail(chance.choice(made), 1, FAILURE, retry=True)
        unfinished = {job_id for job_id in made if not stores.jobs.get(None, job_id).state.is_terminal}
        keep_house(stores)
        made = [job_id for job_id in made if is_there(stores, job_id)]
        assert unfinished <= set(made)
        for job_id in made:
            job, states = stores.jobs.get(None, job_id), stores.states(job_id)
            assert [event.sequence for event in stores.events(job_id)] == list(range(1, job.last_sequence + 1))
            assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(states))
            assert job.end_time is None or job.start_time is None or job.end_time >= job.start_time
    stores.close()


def is_there(stores: OpenStores, job_id: str) -> bool:
    try:
        stores.jobs.get(None, job_id)
    except NotFoundError:
        return False
    return True


def test_a_file_that_a_waiting_job_reads_outlasts_any_jump(tmp_path: Path) -> None:
    clock = ManualClock()
    stores = open_sqlite(tmp_path, clock, orphan_grace_seconds=0.0)
    content = random_bytes(3, 1000)
    artifact = upload(stores.artifacts, content)
    create_job(stores.jobs, "r", spec=spec_for(artifact.artifact_id))
    for jump in (*JUMPS, *reversed(JUMPS)):
        clock.advance(jump)
        keep_house(stores)
        assert read(stores.artifacts, artifact.artifact_id) == content
    stores.close()


def test_an_upload_that_goes_on_outlasts_any_jump(tmp_path: Path) -> None:
    clock = ManualClock()
    stores = open_sqlite(tmp_path, clock, orphan_grace_seconds=0.0)
    content = random_bytes(4, 1000)
    artifact = announce(stores.artifacts, content)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        for offset in range(0, 1000, 100):
            clock.advance(JUMPS[offset // 100 % len(JUMPS)] * 2 + RETENTION_SECONDS)
            keep_house(stores)
            writer.write(offset, content[offset : offset + 100])
        assert writer.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == content
    stores.close()
