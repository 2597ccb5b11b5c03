"""The small parts: input forms, stories, failures, expected outputs, folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.runs import Recorder, TickingClock
from pruning_server.errors import JobFailureError, Reason
from pruning_server.jobs.events import ProgressMade
from pruning_server.recovery.raised import is_out_of_memory, last_line, sentence
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Layout, Preprocessing
from pruning_server.worker.expected import pack, relative_error, unpack
from pruning_server.worker.failures import failure_message
from pruning_server.worker.feeding import place_arguments
from pruning_server.worker.folder import SCRATCH_FILE_BYTES, RunFolder
from pruning_server.worker.forms import MAX_TRIED_FORMS, InputForm, candidate_forms
from pruning_server.worker.running import all_tensors, select_output
from pruning_server.worker.story import PROGRESS_INTERVAL_SECONDS, SHARES, Story

# --- Forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_preprocessing_is_scale_then_mean_then_std_per_channel(channels_last: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(5, 2, 3, 4), dtype=np.uint8)
    form = InputForm(torch.float32, scale=0.5, mean=(1.0, 2.0), std=(3.0, 4.0), channels_last=channels_last)
    stored = images.transpose(0, 2, 3, 1) if channels_last else images
    expected = (images * 0.5 - np.reshape([1, 2], (2, 1, 1))) / np.reshape([3, 4], (2, 1, 1))
    torch.testing.assert_close(form.tensor(stored, "cpu"), torch.from_numpy(expected).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i8", "|u1", "|b1", "<f2"])
def test_stored_types_keep_their_values(dtype: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    values.flags.writeable = False
    assert torch.equal(InputForm(torch.float32).tensor(values, "cpu"), torch.from_numpy(values.astype(np.float32)))


def test_bfloat16_bits_are_read_as_such() -> None:
    wanted = torch.tensor([[1.5, -2.0, 3.140625]], dtype=torch.bfloat16)
    stored = wanted.view(torch.int16).numpy().view(np.uint16)
    assert torch.equal(InputForm(torch.float32, bfloat16_bits=True).tensor(stored, "cpu"), wanted.float())


@given(
    kinds=st.lists(st.sampled_from([np.uint8, np.int64, np.int32, np.float32, np.float64, np.bool_]), min_size=1, max_size=4),
    scale=st.one_of(st.none(), st.just(0.5)),
)  # fmt: skip
def test_every_input_gets_a_form_and_the_likeliest_come_first(kinds: list[type], scale: float | None) -> None:
    arrays = [np.zeros((2, 3), dtype=kind) for kind in kinds]
    candidates = candidate_forms(
        arrays, [str(array.dtype) for array in arrays], Preprocessing(scale=scale), torch.float16
    )
    assert 1 <= len(candidates) <= MAX_TRIED_FORMS
    assert all(len(forms) == len(arrays) for forms in candidates)
    assert len(set(candidates)) == len(candidates)
    for form, kind in zip(candidates[0], kinds, strict=True):
        integer = np.dtype(kind).kind in "ib" and scale is None
        assert form.dtype.is_floating_point != integer
        if np.dtype(kind).kind == "f":
            assert all(forms[0].dtype.is_floating_point for forms in candidates if kinds[0] is kind)


def test_mean_and_std_must_fit_some_input() -> None:
    image = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    row = np.zeros((2, 7), dtype=np.float32)
    wanted = Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    forms = candidate_forms([image, row], ["uint8", "float32"], wanted, torch.float32)[0]
    assert (forms[0].mean, forms[1].mean) == ((1.0, 2.0, 3.0), ())
    for arrays, layout in (([row], None), ([image], Layout.NHWC)):
        with pytest.raises(JobFailureError) as caught:
            candidate_forms(arrays, ["uint8"], Preprocessing(mean=(1.0, 2.0, 3.0), layout=layout), torch.float32)
        assert caught.value.reason is Reason.INVALID_FIELD


@given(tensors=st.integers(0, 4), positions=st.sets(st.integers(0, 5), max_size=3))
def test_scalars_stand_at_their_positions_and_tensors_in_order(tensors: int, positions: set[int]) -> None:
    positions = {position for position in positions if position < tensors + len(positions)}
    if any(position >= tensors + len(positions) for position in positions):
        return
    placed = place_arguments([f"t{i}" for i in range(tensors)], {position: position for position in positions})
    assert {i for i, value in enumerate(placed) if isinstance(value, int)} == positions
    assert [value for value in placed if isinstance(value, str)] == [f"t{i}" for i in range(tensors)]


# --- Outputs ----------------------------------------------------------------------------------------------------------


def test_a_part_of_the_output_is_selected_by_its_path() -> None:
    wanted = torch.ones(2)
    output = ({"a": [torch.zeros(1), wanted]}, torch.zeros(3))
    assert select_output(output, "0.a.1") is wanted
    assert all_tensors(output)[1] is wanted
    assert len(all_tensors(output)) == 3
    for selector in ("0.b", "5", "0.a.x", "0"):
        with pytest.raises(JobFailureError) as caught:
            select_output(output, selector)
        assert caught.value.reason is Reason.MODEL_OUTPUT_UNSUPPORTED


def test_relative_error_is_infinite_where_outputs_do_not_match() -> None:
    one = torch.tensor([1.0, float("nan"), float("-inf"), 4.0])
    assert relative_error([one], [one.clone()]) == 0.0
    assert relative_error([one], [one + torch.tensor([0, 0, 0, 4e-3])]) == pytest.approx(1e-3, rel=1e-2)
    inf = float("inf")
    assert relative_error([one], []) == inf
    assert relative_error([one], [one.double()]) == inf
    assert relative_error([one], [one[:2]]) == inf
    assert relative_error([one], [torch.tensor([1.0, 2.0, float("-inf"), 4.0])]) == inf
    assert relative_error([one], [torch.tensor([1.0, float("nan"), inf, 4.0])]) == inf
    assert relative_error([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    assert relative_error([torch.zeros(0)], [torch.zeros(0)]) == 0.0


@settings(max_examples=25)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 100))
def test_expected_runs_and_masks_survive_the_container(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    removed = torch.rand(shape, generator=generator) > 0.5
    output = {"a": torch.rand(shape, generator=generator).bfloat16(), "b": torch.arange(3)}
    arguments = (torch.rand(2, 3, generator=generator).half(), 16000, True, "x", 0.5)
    path = tmp_path_factory.mktemp("expected") / "expected.npz"
    path.write_bytes(pack([(arguments, output)], {"layer.weight": removed}, seed))
    expected = unpack(path)
    run = expected.meta.runs[0]
    assert torch.equal(expected.tensor(run.arguments[0], "cpu"), arguments[0])
    assert run.arguments[1:] == arguments[1:]
    assert [type(value) for value in run.arguments[1:]] == [type(value) for value in arguments[1:]]
    assert torch.equal(expected.tensor(run.outputs[0], "cpu"), output["a"])
    assert torch.equal(expected.tensor(run.outputs[1], "cpu"), output["b"])
    assert torch.equal(expected.removed(expected.meta.masks[0]), removed)
    assert expected.meta.seed == seed


# --- Story ------------------------------------------------------------------------------------------------------------


def test_progress_goes_forward_is_throttled_and_never_misses_an_epoch() -> None:
    recorder, clock = Recorder(), TickingClock()
    story = Story(recorder, clock)
    for phase in Phase:
        with story.telling(phase):
            for step in range(100):
                story.progress(step / 100, epoch=1 + step // 25, epochs=4)
    sent = [message.progress for message in recorder.messages if isinstance(message, ProgressMade)]
    fractions = [progress.fraction for progress in sent]
    assert fractions == sorted(fractions)
    assert len(sent) < 9 * 100
    assert {(one.phase, one.epoch) for one in sent} >= {(phase, epoch) for phase in Phase for epoch in (1, 2, 3, 4)}
    assert list(story.timings) == [phase.value for phase in Phase]
    assert all(seconds > PROGRESS_INTERVAL_SECONDS for seconds in story.timings.values())
    assert all(one.remaining_seconds is None or one.remaining_seconds >= 0 for one in sent)


def test_the_phase_of_a_failure_is_known() -> None:
    story = Story(Recorder(), TickingClock())
    with pytest.raises(RuntimeError), story.telling(Phase.PRUNE):
        raise RuntimeError("boom")
    assert story.phase is Phase.PRUNE
    assert sum(SHARES.values()) == pytest.approx(1.0, abs=1e-12)


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (JobFailureError(Reason.DATASET_TARGETS, "say so", metadata={"row": "1"}), Reason.DATASET_TARGETS),
        (MemoryError(), Reason.WORKER_OUT_OF_MEMORY),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), Reason.WORKER_OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate"), Reason.WORKER_OUT_OF_MEMORY),
        (torch.OutOfMemoryError("x"), Reason.WORKER_OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.STORAGE_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.STORAGE_FULL),
        (OSError(errno.EIO, "Input/output error"), Reason.WORKER_EXCEPTION),
        (RuntimeError("shapes differ"), Reason.WORKER_EXCEPTION),
        (ValueError("memory of things past"), Reason.WORKER_EXCEPTION),
        (KeyError("x"), Reason.WORKER_EXCEPTION),
    ],
)
def test_every_error_has_a_reason(error: Exception, reason: Reason) -> None:
    message = failure_message(error, Phase.LOAD)
    assert (message.reason, message.phase) == (reason, Phase.LOAD)
    assert message.text
    assert is_out_of_memory(error) == (reason is Reason.WORKER_OUT_OF_MEMORY)


def test_the_last_line_is_short_printable_and_a_sentence() -> None:
    error = RuntimeError("Traceback of TorchScript\n  File x\nbuiltins.ValueError: bad \x1b[31minput\n\n")
    assert last_line(error) == "ValueError: bad  [31minput"
    assert sentence(error).endswith("input.")
    assert len(last_line(ValueError("x" * 5000))) < 700
    assert last_line(KeyError()) == "KeyError"


# --- Folder -----------------------------------------------------------------------------------------------------------


def test_files_are_written_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write("out/report.json", json.dumps({"a": 1}).encode())
    folder.write("out/report.json", b"{}")
    assert folder.path("out/report.json").read_bytes() == b"{}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_large_scratch_arrays_leave_nothing_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    small, large = folder.scratch((3, 2)), folder.scratch((SCRATCH_FILE_BYTES // 4 + 1,))
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    large[-1] = 2.5
    assert (large[0], large[-1]) == (0.0, 2.5)
    assert list(tmp_path.iterdir()) == []
