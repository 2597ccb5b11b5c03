"""The stream of a worker's messages: whatever is sent, only messages come out, and memory stays bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pruning_server.adapters.messages import MAX_LINE_BYTES, MessageDecoder
from pruning_server.errors import Reason
from pruning_server.jobs.events import (
    CheckPassed,
    CountersAdded,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    ProgressMade,
    RunFailed,
    RunSucceeded,
    Severity,
    WorkerAlive,
)
from pruning_server.jobs.model import Progress
from pruning_server.spec.base import to_json
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Verdict

MESSAGES = (
    PhaseStarted(phase=Phase.LOAD),
    PhaseFinished(phase=Phase.LOAD, seconds=1.5),
    ProgressMade(progress=Progress(phase=Phase.RECOVER, fraction=0.5, epoch=1, epochs=3, metrics={"loss": 0.25})),
    LogWritten(severity=Severity.WARNING, text="é\n\x1b"),
    CountersAdded(parameters_processed=3),
    WorkerAlive(rss_bytes=7),
    RunSucceeded(verdict=Verdict.PASS, sparsity=0.5, accuracy_drop=0.0, device_type="cpu"),
    CheckPassed(max_relative_error=0.0),
    RunFailed(reason=Reason.NOTHING_PRUNABLE, text="x", phase=None, metadata={"a": "b"}),
)


@given(st.lists(st.sampled_from(MESSAGES)), st.lists(st.integers(1, 50)))
def test_messages_survive_any_cutting_of_the_stream(messages: list[PhaseStarted], cuts: list[int]) -> None:
    stream = b"".join(to_json(message) + b"\n" for message in messages)
    decoder, found = MessageDecoder(), []
    for cut in cuts:
        found += decoder.feed(stream[:cut])
        stream = stream[cut:]
    found += decoder.feed(stream)
    assert found == messages
    assert decoder.refused == 0


@given(st.lists(st.binary(max_size=200)))
def test_noise_between_messages_is_dropped_and_never_raises(noise: list[bytes]) -> None:
    decoder, found = MessageDecoder(), []
    for piece in noise:
        found += decoder.feed(piece.replace(b"\n", b"") + b"\n")
        found += decoder.feed(to_json(MESSAGES[0]) + b"\n")
    assert found == [MESSAGES[0]] * len(noise)


def test_a_line_without_an_end_costs_no_memory_and_the_next_message_is_read() -> None:
    decoder = MessageDecoder()
    for _ in range(10):
        assert list(decoder.feed(b"x" * MAX_LINE_BYTES)) == []
        assert len(decoder._rest) <= MAX_LINE_BYTES
    assert list(decoder.feed(b"end\n" + to_json(MESSAGES[0]) + b"\n")) == [MESSAGES[0]]
