"""What every ArtifactStore must do."""

from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from helpers.stores import (
    FAILURE,
    FILLINGS,
    MAX_ARTIFACT_BYTES,
    OWNER,
    RETENTION_SECONDS,
    STRANGER,
    UPLOAD_RETENTION_SECONDS,
    ManualClock,
    OpenStores,
    announce,
    random_bytes,
    read,
    sha256_of,
    spec_for,
    upload,
)
from pruning_server.errors import (
    CapacityError,
    ChecksumError,
    InvalidArtifactError,
    InvalidRequestError,
    NotFoundError,
    OffsetError,
    PreconditionError,
    Reason,
)
from pruning_server.jobs.model import Result
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary, ModelSummary, TensorSummary
from pruning_server.spec.request import Verdict

CONTENT = random_bytes(1, 100_000)
SHA256 = sha256_of(CONTENT)
SUMMARY = DatasetSummary(
    container="npz",
    samples=7,
    inputs=(TensorSummary(name="inputs", dtype="float32", shape=(7, 3)),),
    targets=None,
    has_split=False,
    has_groups=False,
    size_bytes=len(CONTENT),
)


# --- Announcing -------------------------------------------------------------------------------------------------------


def test_an_announced_file_is_pending(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    assert artifact == stores.artifacts.get(OWNER, artifact.artifact_id)
    assert (artifact.active, artifact.committed_size_bytes, artifact.size_bytes) == (False, 0, len(CONTENT))
    assert (artifact.kind, artifact.sha256, artifact.display_name) == (ArtifactKind.DATASET, SHA256, "data.npz")
    assert artifact.expire_time == stores.clock.now() + UPLOAD_RETENTION_SECONDS


@pytest.mark.parametrize(
    ("sha256", "size_bytes", "field", "reason"),
    [
        (SHA256, 0, "size_bytes", Reason.INVALID_FIELD),
        (SHA256, -1, "size_bytes", Reason.INVALID_FIELD),
        (SHA256, MAX_ARTIFACT_BYTES + 1, "size_bytes", Reason.ARTIFACT_TOO_LARGE),
        (SHA256, 2**70, "size_bytes", Reason.ARTIFACT_TOO_LARGE),
        (SHA256.upper(), 10, "sha256", Reason.INVALID_FIELD),
        (SHA256[:-1], 10, "sha256", Reason.INVALID_FIELD),
        (SHA256 + "0", 10, "sha256", Reason.INVALID_FIELD),
        (SHA256 + "\n", 10, "sha256", Reason.INVALID_FIELD),
        ("../" + SHA256[3:], 10, "sha256", Reason.INVALID_FIELD),
        ("", 10, "sha256", Reason.INVALID_FIELD),
    ],
)
def test_announcements_that_cannot_be_right_are_refused(
    stores: OpenStores, sha256: str, size_bytes: int, field: str, reason: Reason
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        stores.artifacts.create(OWNER, ArtifactKind.DATASET, sha256, size_bytes, "")
    assert caught.value.reason is reason
    assert [violation.field for violation in caught.value.violations] == [field]
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")


def test_announcing_again_resumes(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
    again = announce(stores.artifacts, CONTENT)
    assert (again.artifact_id, again.committed_size_bytes) == (artifact.artifact_id, 1000)


def test_what_this_owner_has_is_active_at_once_also_as_another_kind(stores: OpenStores) -> None:
    first = upload(stores.artifacts, CONTENT)
    again = announce(stores.artifacts, CONTENT)
    other = announce(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)
    assert again.artifact_id == first.artifact_id
    assert other.artifact_id != first.artifact_id
    assert again.active
    assert other.active
    assert read(stores.artifacts, other.artifact_id) == CONTENT


def test_nobody_learns_by_a_hash_what_others_have(stores: OpenStores) -> None:
    mine = upload(stores.artifacts, CONTENT)
    theirs = announce(stores.artifacts, CONTENT, owner=STRANGER)
    assert not theirs.active
    assert theirs.committed_size_bytes == 0
    with (
        pytest.raises(ChecksumError),
        stores.artifacts.open_upload(STRANGER, theirs.artifact_id) as writer,
    ):
        writer.finish()
    assert not stores.artifacts.get(STRANGER, theirs.artifact_id).active
    # Also where the claimed size is wrong, the answer is as if nobody had it.
    assert not stores.artifacts.create(STRANGER, ArtifactKind.DATASET, SHA256, 5, "").active
    assert upload(stores.artifacts, CONTENT, owner=STRANGER).active
    stores.artifacts.delete(OWNER, mine.artifact_id)
    assert read(stores.artifacts, theirs.artifact_id, STRANGER) == CONTENT


def test_a_known_hash_with_another_size_is_refused(stores: OpenStores) -> None:
    upload(stores.artifacts, CONTENT)
    with pytest.raises(InvalidRequestError) as caught:
        stores.artifacts.create(OWNER, ArtifactKind.DATASET, SHA256, 5, "")
    assert str(len(CONTENT)) in caught.value.message


def test_a_wrong_size_can_be_corrected(stores: OpenStores) -> None:
    wrong = stores.artifacts.create(OWNER, ArtifactKind.DATASET, SHA256, 5, "")
    right = upload(stores.artifacts, CONTENT)
    assert right.active
    assert right.artifact_id != wrong.artifact_id


# --- Uploading --------------------------------------------------------------------------------------------------------


def test_a_file_goes_up_and_comes_down(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    assert artifact == stores.artifacts.get(OWNER, artifact.artifact_id)
    assert (artifact.active, artifact.committed_size_bytes) == (True, len(CONTENT))
    assert artifact.expire_time == stores.clock.now() + RETENTION_SECONDS
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    assert stores.artifacts.path(artifact.artifact_id).read_bytes() == CONTENT


@pytest.mark.parametrize("seed", range(6))
def test_an_upload_that_is_cut_anywhere_resumes(stores: OpenStores, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(rng.randint(1, 300_000))
    artifact = announce(stores.artifacts, content)
    position, cuts = 0, 0
    while position < len(content):
        with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            for _ in range(rng.randint(0, 5)):
                chunk = content[position : position + rng.randint(0, 40_000)]
                writer.write(position, memoryview(chunk) if rng.random() < 0.5 else chunk)
                position += len(chunk)
        assert stores.artifacts.get(OWNER, artifact.artifact_id).committed_size_bytes == position
        cuts += 1
    assert cuts > 0
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        assert writer.finish().active
    assert sha256_of(read(stores.artifacts, artifact.artifact_id)) == artifact.sha256


def test_a_broken_stream_keeps_what_arrived(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)

    def broken_stream() -> None:
        with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            writer.write(0, CONTENT[:777])
            raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        broken_stream()
    assert stores.artifacts.get(OWNER, artifact.artifact_id).committed_size_bytes == 777


@pytest.mark.parametrize("offset", [0, 99, 101, 10**12, -1])
def test_a_wrong_offset_is_refused_and_the_right_one_named(stores: OpenStores, offset: int) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:100])
        with pytest.raises(OffsetError) as caught:
            writer.write(offset, CONTENT[:10])
        assert caught.value.metadata["committed_size_bytes"] == "100"
        writer.write(100, CONTENT[100:])
        assert writer.finish().active


def test_more_bytes_than_announced_are_refused(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT)
        with pytest.raises(InvalidRequestError, match=str(len(CONTENT))):
            writer.write(len(CONTENT), b"x")
        assert writer.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


@pytest.mark.parametrize("sent", [b"", CONTENT[:-1], CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])])
def test_other_content_is_refused_and_the_upload_starts_anew(stores: OpenStores, sent: bytes) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, sent)
        with pytest.raises(ChecksumError) as caught:
            writer.finish()
        assert caught.value.reason is Reason.CONTENT_MISMATCH
    pending = stores.artifacts.get(OWNER, artifact.artifact_id)
    assert (pending.active, pending.committed_size_bytes) == (False, 0)
    with pytest.raises(PreconditionError):
        stores.artifacts.open_read(OWNER, artifact.artifact_id)
    assert upload(stores.artifacts, CONTENT).artifact_id == artifact.artifact_id
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_the_right_bytes_with_a_wrong_size_are_refused(stores: OpenStores) -> None:
    artifact = stores.artifacts.create(OWNER, ArtifactKind.DATASET, SHA256, len(CONTENT) + 10, "")
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT)
        with pytest.raises(ChecksumError, match=str(len(CONTENT) + 10)):
            writer.finish()


def test_after_a_mismatch_the_same_stream_may_go_on_from_0(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, b"wrong")
        with pytest.raises(ChecksumError):
            writer.finish()
        writer.write(0, CONTENT)
        assert writer.finish().active


def test_one_writer_at_a_time(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        for intrusion in (
            lambda: stores.artifacts.open_upload(OWNER, artifact.artifact_id).__enter__(),
            lambda: stores.artifacts.delete(OWNER, artifact.artifact_id),
        ):
            with pytest.raises(PreconditionError) as caught:
                intrusion()
            assert caught.value.reason is Reason.UPLOAD_IN_PROGRESS
        with pytest.raises(NotFoundError):
            stores.artifacts.open_upload(STRANGER, artifact.artifact_id).__enter__()
        writer.write(0, CONTENT)
        assert writer.finish().active
    stores.artifacts.delete(OWNER, artifact.artifact_id)


def test_whoever_lost_the_answer_to_finish_can_ask_again(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        with pytest.raises(OffsetError) as caught:
            writer.write(0, CONTENT)
        assert caught.value.metadata["committed_size_bytes"] == str(len(CONTENT))
        writer.write(len(CONTENT), b"")
        with pytest.raises(InvalidRequestError):
            writer.write(len(CONTENT), b"x")
        assert writer.suspend() == artifact
        assert writer.finish() == artifact


def test_uploads_of_many_callers_do_not_mix(stores: OpenStores) -> None:
    # Two thirds of them are the same bytes, so that threads meet on the same file and on its removal.
    contents = [random_bytes(max(0, number - 7), 50_000) for number in range(12)]
    together = threading.Barrier(4)

    def work(thread: int) -> None:
        owner = f"owner-{thread}"
        together.wait(timeout=10)
        for number, content in enumerate(contents):
            artifact = upload(stores.artifacts, content, owner=owner)
            assert read(stores.artifacts, artifact.artifact_id, owner) == content
            if number % 2:
                stores.artifacts.delete(owner, artifact.artifact_id)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    for thread in range(4):
        owner = f"owner-{thread}"
        for artifact in stores.artifacts.list(owner, None, 100, "")[0]:
            assert sha256_of(read(stores.artifacts, artifact.artifact_id, owner)) == artifact.sha256


# --- Files of our own -------------------------------------------------------------------------------------------------


def test_a_result_is_stored_as_a_copy(stores: OpenStores, tmp_path: Path) -> None:
    source = tmp_path / "pruned.pt"
    source.write_bytes(CONTENT)
    artifact = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "pruned.pt")
    assert (artifact.active, artifact.sha256, artifact.size_bytes) == (True, SHA256, len(CONTENT))
    assert artifact == stores.artifacts.get(OWNER, artifact.artifact_id)
    with source.open("r+b") as file:
        file.write(b"changed later")
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    source.write_bytes(CONTENT)
    again = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "pruned.pt")
    assert again.artifact_id == artifact.artifact_id


def test_a_result_completes_an_upload_of_the_same_content(stores: OpenStores, tmp_path: Path) -> None:
    source = tmp_path / "pruned.pt"
    source.write_bytes(CONTENT)
    pending = announce(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)
    with stores.artifacts.open_upload(OWNER, pending.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
        stored = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "pruned.pt")
        assert (stored.artifact_id, stored.active) == (pending.artifact_id, True)
        writer.write(1000, CONTENT[1000:])
        assert writer.finish().active
    assert read(stores.artifacts, pending.artifact_id) == CONTENT


def test_an_upload_that_a_result_overtook_takes_nothing_back(stores: OpenStores, tmp_path: Path) -> None:
    source = tmp_path / "pruned.pt"
    source.write_bytes(CONTENT)
    pending = announce(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)
    with stores.artifacts.open_upload(OWNER, pending.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
        stored = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "pruned.pt")
    assert stores.artifacts.get(OWNER, pending.artifact_id) == stored
    assert stored.active
    assert read(stores.artifacts, pending.artifact_id) == CONTENT


@pytest.mark.parametrize("what", ["link", "folder", "empty", "missing"])
def test_a_result_that_is_no_plain_file_is_refused(stores: OpenStores, tmp_path: Path, what: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the server")
    source = tmp_path / "pruned.pt"
    match what:
        case "link":
            source.symlink_to(secret)
        case "folder":
            source.mkdir()
        case "empty":
            source.touch()
    with pytest.raises(FileNotFoundError if what == "missing" else InvalidArtifactError):
        stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "")
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_nobody_else_can_see_or_touch_an_artifact(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    for call in (
        stores.artifacts.get,
        stores.artifacts.open_read,
        stores.artifacts.delete,
        lambda owner, artifact_id: stores.artifacts.open_upload(owner, artifact_id).__enter__(),
    ):
        for owner, artifact_id in ((STRANGER, artifact.artifact_id), (OWNER, "0" * 32), (OWNER, "../x"), (OWNER, "")):
            with pytest.raises(NotFoundError) as caught:
                call(owner, artifact_id)
            assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND
    with pytest.raises(NotFoundError):
        stores.artifacts.path("0" * 32)
    with pytest.raises(NotFoundError):
        stores.artifacts.summary("0" * 32)
    assert stores.artifacts.list(STRANGER, None, 10, "") == ((), "")
    assert stores.artifacts.get(OWNER, artifact.artifact_id) == artifact


def test_a_pending_artifact_cannot_be_read(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    for call in (
        lambda: stores.artifacts.open_read(OWNER, artifact.artifact_id),
        lambda: stores.artifacts.path(artifact.artifact_id),
        lambda: stores.artifacts.put_summary(artifact.artifact_id, SUMMARY),
    ):
        with pytest.raises(PreconditionError) as caught:
            call()
        assert caught.value.reason is Reason.ARTIFACT_NOT_ACTIVE


def test_a_reader_keeps_its_bytes_when_the_artifact_is_deleted(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    with stores.artifacts.open_read(OWNER, artifact.artifact_id) as file:
        head = file.read(10)
        stores.artifacts.delete(OWNER, artifact.artifact_id)
        assert head + file.read() == CONTENT
    with pytest.raises(NotFoundError):
        stores.artifacts.get(OWNER, artifact.artifact_id)


def test_lists_are_paged_newest_first_and_filtered(stores: OpenStores) -> None:
    kinds = (ArtifactKind.DATASET, ArtifactKind.TORCHSCRIPT)
    made = []
    for number in range(7):
        made.append(announce(stores.artifacts, random_bytes(number, 10), kinds[number % 2]).artifact_id)
        stores.clock.advance(1)
    announce(stores.artifacts, CONTENT, owner=STRANGER)
    for kind, expected in ((None, made), (kinds[0], made[::2]), (kinds[1], made[1::2]), (ArtifactKind.LOSS, [])):
        for page_size in (1, 2, 7, 8):
            found, token = [], ""
            while True:
                page, token = stores.artifacts.list(OWNER, kind, page_size, token)
                found += [artifact.artifact_id for artifact in page]
                if not token:
                    break
            assert found == expected[::-1]
    with pytest.raises(InvalidRequestError) as caught:
        stores.artifacts.list(OWNER, None, 10, "nonsense")
    assert caught.value.reason is Reason.INVALID_PAGE_TOKEN


def test_what_the_gate_found_belongs_to_content_and_kind(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    assert stores.artifacts.summary(artifact.artifact_id) is None
    stores.artifacts.put_summary(artifact.artifact_id, SUMMARY)
    assert stores.artifacts.summary(artifact.artifact_id) == SUMMARY
    model = announce(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)
    assert stores.artifacts.summary(model.artifact_id) is None
    found = ModelSummary(format_version=10, root="m", methods=("forward",), tensor_bytes=1, code_bytes=2, size_bytes=3)
    stores.artifacts.put_summary(model.artifact_id, found)
    assert stores.artifacts.summary(model.artifact_id) == found
    assert stores.artifacts.summary(artifact.artifact_id) == SUMMARY
    stores.artifacts.delete(OWNER, artifact.artifact_id)
    assert stores.artifacts.summary(model.artifact_id) == found
    assert stores.artifacts.summary(announce(stores.artifacts, CONTENT).artifact_id) is None


# --- Deleting and collecting ------------------------------------------------------------------------------------------


def test_an_artifact_of_an_unfinished_job_cannot_be_deleted(stores: OpenStores) -> None:
    model = upload(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)
    data = upload(stores.artifacts, CONTENT)
    spec = spec_for(model.artifact_id, data.artifact_id)
    job = stores.run(spec=spec)
    for artifact in (model, data):
        with pytest.raises(PreconditionError) as caught:
            stores.artifacts.delete(OWNER, artifact.artifact_id)
        assert caught.value.reason is Reason.ARTIFACT_IN_USE
        assert caught.value.metadata == {"job_id": job.job_id}
    stores.jobs.fail(job.job_id, 1, FAILURE, retry=False)
    stores.artifacts.delete(OWNER, model.artifact_id)
    assert read(stores.artifacts, data.artifact_id) == CONTENT


def test_what_is_past_its_time_is_collected(stores: OpenStores) -> None:
    stored = upload(stores.artifacts, CONTENT)
    pending = announce(stores.artifacts, random_bytes(2, 5000))
    with stores.artifacts.open_upload(OWNER, pending.artifact_id) as writer:
        writer.write(0, random_bytes(2, 5000)[:4000])
    assert stores.artifacts.collect_garbage() == 0
    stores.clock.advance(UPLOAD_RETENTION_SECONDS)
    assert stores.artifacts.collect_garbage() == 4000
    with pytest.raises(NotFoundError):
        stores.artifacts.get(OWNER, pending.artifact_id)
    assert stores.artifacts.get(OWNER, stored.artifact_id) == stored
    stores.clock.advance(RETENTION_SECONDS)
    assert stores.artifacts.collect_garbage() == len(CONTENT)
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")
    assert stores.artifacts.collect_garbage() == 0


def test_an_upload_that_goes_on_is_not_collected(stores: OpenStores) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
        stores.clock.advance(10 * UPLOAD_RETENTION_SECONDS)
        assert stores.artifacts.collect_garbage() == 0
        writer.write(1000, CONTENT[1000:])
        assert writer.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_using_an_artifact_keeps_it(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    stores.clock.advance(RETENTION_SECONDS - 1)
    assert announce(stores.artifacts, CONTENT).expire_time == stores.clock.now() + RETENTION_SECONDS
    stores.clock.advance(RETENTION_SECONDS - 1)
    job = stores.run(spec=spec_for(artifact.artifact_id, artifact.artifact_id))
    kept_until = stores.clock.now() + RETENTION_SECONDS
    assert stores.artifacts.get(OWNER, artifact.artifact_id).expire_time == kept_until
    stores.jobs.fail(job.job_id, 1, FAILURE, retry=False)
    stores.jobs.delete(OWNER, job.job_id)
    stores.clock.advance(RETENTION_SECONDS - 1)
    assert stores.artifacts.collect_garbage() == 0


def test_a_job_of_another_owner_does_not_keep_an_artifact_from_being_deleted(stores: OpenStores) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    stores.clock.advance(10)
    stores.submit(owner=STRANGER, spec=spec_for(artifact.artifact_id))
    assert stores.artifacts.get(OWNER, artifact.artifact_id) == artifact, "not even its time is touched"


def finished_job(
    stores: OpenStores, tmp_path: Path, request_id: str, model_id: str, data_id: str
) -> tuple[str, Result]:
    job = stores.run(request_id, spec=spec_for(model_id, data_id))
    pruned, report = tmp_path / "pruned.pt", tmp_path / "report.json"
    pruned.write_bytes(b"pruned " + request_id.encode() + CONTENT)
    report.write_bytes(b"{}")
    result = Result(
        model_artifact_id=stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, pruned, "pruned.pt").artifact_id,
        report_artifact_id=stores.artifacts.put_file(OWNER, ArtifactKind.REPORT, report, "report.json").artifact_id,
        verdict=Verdict.PASS,
        sparsity=0.8,
    )
    stores.jobs.succeed(job.job_id, 1, result)
    return job.job_id, result


def test_what_a_kept_job_needs_is_kept_and_then_goes_with_it(stores: OpenStores, tmp_path: Path) -> None:
    model, data = upload(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT), upload(stores.artifacts, CONTENT[1:])
    waiting = stores.submit("waits", spec=spec_for(model.artifact_id, data.artifact_id), device="cuda:7")
    stores.clock.advance(3 * RETENTION_SECONDS)
    assert stores.artifacts.collect_garbage() == 0, "a job waits for them"
    stores.jobs.request_cancel(OWNER, waiting.job_id)
    _, result = finished_job(stores, tmp_path, "done", model.artifact_id, data.artifact_id)
    stores.clock.advance(RETENTION_SECONDS - 1)
    assert stores.jobs.delete_expired() == 0
    assert stores.artifacts.collect_garbage() == 0
    assert read(stores.artifacts, result.report_artifact_id) == b"{}"
    stores.clock.advance(1)
    assert stores.jobs.delete_expired() == 2
    assert stores.artifacts.collect_garbage() > 3 * len(CONTENT) - 2
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")


def test_deleting_a_job_frees_what_only_it_made(stores: OpenStores, tmp_path: Path) -> None:
    model, data = upload(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT), upload(stores.artifacts, CONTENT[1:])
    first, first_result = finished_job(stores, tmp_path, "1", model.artifact_id, data.artifact_id)
    second, second_result = finished_job(stores, tmp_path, "2", model.artifact_id, data.artifact_id)
    assert first_result.report_artifact_id == second_result.report_artifact_id, "the same bytes"
    # The caller prunes the second result further: it announces it, so it is an upload of its own right.
    pruned = b"pruned 2" + CONTENT
    assert announce(stores.artifacts, pruned, ArtifactKind.TORCHSCRIPT).artifact_id == second_result.model_artifact_id
    shared = stores.artifacts.get(OWNER, second_result.report_artifact_id)
    stores.jobs.delete(OWNER, first)
    assert stores.artifacts.get(OWNER, second_result.report_artifact_id) == shared
    assert stores.artifacts.collect_garbage() == len(pruned)
    assert read(stores.artifacts, second_result.report_artifact_id) == b"{}"
    stores.jobs.delete(OWNER, second)
    assert stores.artifacts.collect_garbage() == 2
    left = {artifact.artifact_id for artifact in stores.artifacts.list(OWNER, None, 10, "")[0]}
    assert left == {model.artifact_id, data.artifact_id, second_result.model_artifact_id}


def test_deleting_a_job_spares_what_another_one_has_just_made_again(stores: OpenStores, tmp_path: Path) -> None:
    model, data = upload(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT), upload(stores.artifacts, CONTENT[1:])
    first, result = finished_job(stores, tmp_path, "1", model.artifact_id, data.artifact_id)
    stores.clock.advance(10)
    second = stores.run("2", spec=spec_for(model.artifact_id, data.artifact_id))
    again = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, tmp_path / "pruned.pt", "pruned.pt")
    assert again.artifact_id == result.model_artifact_id, "the same bytes"
    # The second job has its files in the store, and is about to say so.
    stores.jobs.delete(OWNER, first)
    stores.artifacts.collect_garbage()
    done = msgspec.structs.replace(result, report_artifact_id=again.artifact_id)
    stores.jobs.succeed(second.job_id, 1, done)
    assert read(stores.artifacts, again.artifact_id) == b"pruned 1" + CONTENT


def test_collecting_while_others_upload_loses_nothing(stores: OpenStores) -> None:
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            stores.artifacts.collect_garbage()

    def work(thread: int) -> None:
        for number in range(15):
            content = hashlib.sha256(bytes([thread % 2, number])).digest() * 100
            artifact = upload(stores.artifacts, content, owner=f"owner-{thread}")
            assert read(stores.artifacts, artifact.artifact_id, f"owner-{thread}") == content

    with ThreadPoolExecutor(5) as threads:
        collector = threads.submit(collect)
        try:
            list(threads.map(work, range(4)))
        finally:
            done.set()
        collector.result(timeout=10)


def test_an_owners_share_of_the_disk(tmp_path: Path) -> None:
    """What is announced counts from the start; what jobs make counts, and is kept whatever it comes to."""
    for filling in FILLINGS.values():
        stores = filling(tmp_path, ManualClock(), max_bytes_per_owner=100)  # type: ignore[call-arg]
        announce(stores.artifacts, b"a" * 60)
        with pytest.raises(CapacityError) as caught:
            announce(stores.artifacts, b"b" * 41)
        assert (caught.value.reason, caught.value.quota) == (Reason.QUOTA_EXCEEDED, "stored_bytes")
        assert caught.value.retry_after_seconds is None
        announce(stores.artifacts, b"b" * 41, owner=STRANGER)
        announce(stores.artifacts, b"a" * 60)
        made = tmp_path / "made"
        made.write_bytes(b"c" * 90)
        stores.artifacts.put_file(OWNER, ArtifactKind.DATASET, made, "made")
        with pytest.raises(CapacityError):
            announce(stores.artifacts, b"d")
        stores.close()
