"""What a grid of reports says: effects of removed parameters and of dropout, by constructed models."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pruning_client import Job, JobState, NotFoundError, Sparsity, Static, StoredArtifact, Submission
from pruning_client.verification.conclusion import Reading, conclude, read
from pruning_client.verification.effects import Effect, _t_quantile, find_effects, paired_effect
from pruning_client.verification.grid import Cell, Ran, run_grid
from pruning_client.verification.page import render_verification
from pruning_client.verification.summary import summarize

RATIOS, RATES = (0.3, 0.5, 0.7), (0.0, 0.25, 0.5)
SAMPLES = 1000


def job(number: int, state: JobState = JobState.SUCCEEDED) -> Job:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    spec = Submission(StoredArtifact("m"), StoredArtifact("v"), Static(), Sparsity(0.5))
    return Job(f"job-{number}", state, spec, None, 1, 1, now, now, now, None, None, None, {}, "")


def ran(lost: dict[Cell, float], samples: int = SAMPLES, layers: int = 2) -> list[Ran]:
    """Jobs whose pruned models lose this share of what the original has right, the same samples first."""
    rng = np.random.default_rng(0)
    original = (rng.random(samples) < 0.9).astype(float)
    order = rng.permutation(np.flatnonzero(original > 0))
    found = []
    for number, (cell, share) in enumerate(lost.items()):
        pruned = original.copy()
        pruned[order[: round(share * samples)]] = 0
        found.append(Ran(cell, job(number), report(original, pruned, cell, layers)))
    return found


def report(original: np.ndarray, pruned: np.ndarray, cell: Cell, layers: int) -> dict[str, Any]:
    delta = float(pruned.mean() - original.mean())
    compared = {
        "delta": delta,
        "interval": [delta - 0.01, delta + 0.01],
        "verdict": "PASS" if delta > -0.02 else "FAIL",
    }
    values = {
        "rows": list(range(0, 2 * len(original), 2)), "units": list(range(len(original))),
        "clean_original": original.tolist(), "clean_pruned": pruned.tolist(),
        "auc_original": original.tolist(), "auc_pruned": pruned.tolist(),
    }  # fmt: skip
    levels = [{"level": level, "original": 0.9, "pruned": 0.8, **compared} for level in (0.0, 0.25, 0.5)]
    return {
        "schema_version": "1.1",
        "accuracy": {"metric": "accuracy", "confidence_level": 0.95, "original": 0.9, "pruned": 0.9 + delta} | compared,
        "generalization": {"verdict": compared["verdict"], "margin": 0.03},
        "strategy": {
            "recovery": {
                "kept": "fine_tuning",
                "dropout": {"asked": cell.dropout, "layers": layers, "unset": 0},
                "rungs": [{"kept": True, "gradient_steps": 10}],
            }
        },
        "robustness": {
            "occlusion": {
                "kind": "area", "levels": levels, "auc_original": 0.9, "auc_pruned": 0.9 + delta, **compared,
                "sample_values": values,
            },
            "curves": [{"kind": "noise", "levels": levels, **compared}],
            "prune_potential": {"ratios": [cell.ratio], "margin": 0.03, "clean": None, "shifted": {}},
        },
    }  # fmt: skip


def grid(loss_of_ratio: float, loss_of_rate: float) -> dict[Cell, float]:
    """Shares lost: more for larger ratios, and for lower rates."""
    return {
        Cell(ratio, rate): loss_of_ratio * (ratio - 0.3) / 0.4 + loss_of_rate * (0.5 - rate) / 0.5
        for ratio in RATIOS
        for rate in RATES
    }


def summary(jobs: list[Ran]) -> dict[str, Any]:
    return summarize(jobs, target="sparsity", ratios=RATIOS, rates=RATES)


@pytest.mark.parametrize(
    ("of_ratio", "of_rate", "starts"),
    [
        (0.2, 0.0, "Generalization is lost to the parameters removed, not to lowered dropout"),
        (0.0, 0.2, "Generalization is lost to lowered dropout, not to the parameters removed"),
        (
            0.2,
            0.1,
            "Both: generalization is lost to the parameters removed and to lowered dropout, more to the parameters",
        ),
        (
            0.1,
            0.2,
            "Both: generalization is lost to the parameters removed and to lowered dropout, more to lowered dropout",
        ),
        (0.0, 0.0, "Neither: a loss of the margin is ruled out for both"),
    ],
)
def test_the_question_is_answered_by_what_the_models_do(of_ratio: float, of_rate: float, starts: str) -> None:
    found = summary(ran(grid(of_ratio, of_rate)))
    assert found["conclusion"].startswith(starts)
    effects = found["effects"]["occlusion"]
    assert effects["parameters"]["delta"] == pytest.approx(-of_ratio, abs=0.01)
    assert effects["dropout"]["delta"] == pytest.approx(-of_rate, abs=0.01)
    assert found["effects"]["clean"] == effects


def test_few_samples_cannot_tell() -> None:
    assert summary(ran(grid(0.0, 0.0), samples=40))["conclusion"].startswith("Cannot be told")


def test_a_model_without_dropout_has_one_axis() -> None:
    found = summary(ran({Cell(ratio, 0.0): ratio - 0.3 for ratio in RATIOS}, layers=0))
    assert found["conclusion"].startswith("The parameters removed cost generalization")
    assert "dropout was not varied" in found["conclusion"]
    assert found["effects"]["occlusion"]["dropout"] is None
    assert found["dropout_layers"] == 0
    assert any("axis of dropout rates is empty" in note for note in found["notes"])


def test_one_ratio_is_held_against_the_original() -> None:
    found = summary(ran({Cell(0.5, rate): 0.2 for rate in RATES}))
    assert found["effects"]["occlusion"]["parameters"]["delta"] == pytest.approx(-0.2, abs=1e-9)
    assert "removing parameters changed" in found["conclusion"]


def test_jobs_without_a_report_leave_gaps() -> None:
    jobs = ran(grid(0.2, 0.0))
    jobs[4] = Ran(jobs[4].cell, job(4, JobState.FAILED), None)
    found = summary(jobs)
    assert found["cells"][4]["state"] == "FAILED"
    assert found["cells"][4]["occlusion"]["delta"] is None
    assert found["conclusion"].startswith("Generalization is lost to the parameters removed")
    assert "1 of 9 jobs" in found["notes"][0]
    nothing = summary([Ran(one.cell, job(0, JobState.FAILED), None) for one in jobs])
    assert nothing["conclusion"].startswith("Cannot be told")
    assert render_verification(nothing).startswith("<!doctype html>")


def test_the_potential_is_the_largest_ratio_within_the_margin() -> None:
    found = summary(ran({Cell(0.3, 0.0): 0.0, Cell(0.5, 0.0): 0.025, Cell(0.7, 0.0): 0.2}))
    potential = found["prune_potential"]
    assert potential["shown"] == {"clean": 0.3, "occlusion": 0.3, "noise": 0.3}
    assert potential["estimated"] == {"clean": 0.5, "occlusion": 0.5, "noise": 0.5}


def test_steps_without_gradients_are_told() -> None:
    jobs = ran(grid(0.1, 0.0))
    assert jobs[0].report is not None
    jobs[0].report["strategy"]["recovery"]["rungs"][0]["gradient_steps"] = 0
    assert any(note.startswith("In 1 of 9 jobs") for note in summary(jobs)["notes"])


def test_the_page_is_whole_and_trusts_nothing() -> None:
    found = summary(ran(grid(0.2, 0.1)))
    found["notes"].append("<script>alert(1)</script>")
    found["metric"] = "accuracy<b>"
    page = render_verification(found)
    assert "<script" not in page
    assert "accuracy<b>" not in page
    assert page.count('<svg class="plot"') == 3 + 9
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "Both" in page
    assert render_verification({}).startswith("<!doctype html>")


class Server:
    """What a client would say of a server that keeps jobs by the id of their request; `bad` requests come to nothing."""

    def __init__(self, bad: int = 0, layers: int = 2) -> None:
        self.by_request: dict[str, Job] = {}
        self.bad, self.layers, self.most, self.open = bad, layers, 0, set[str]()

    def store(self, submission: Submission, on_note: object = None) -> Submission:
        assert on_note is not None
        return submission

    def submit(self, submission: Submission, request_id: str, labels: dict[str, str]) -> Job:
        assert labels
        known = self.by_request.get(request_id)
        if known is None:
            known = dataclasses.replace(job(len(self.by_request), JobState.QUEUED), spec=submission)
            state = JobState.FAILED if len(self.by_request) < self.bad else JobState.SUCCEEDED
            self.by_request[request_id] = dataclasses.replace(known, state=state)
            self.open.add(known.job_id)
        self.most = max(self.most, len(self.open))
        return known

    def wait(self, job_id: str) -> Job:
        self.open.discard(job_id)
        return next(found for found in self.by_request.values() if found.job_id == job_id)

    def report(self, ended: Job) -> dict[str, Any]:
        if ended.state is not JobState.SUCCEEDED:
            raise NotFoundError("no report")
        assert ended.spec.target is not None
        assert ended.spec.dropout is not None
        return report(np.ones(50), np.ones(50), Cell(ended.spec.target.value, ended.spec.dropout), self.layers)


def run(server: Server, at_once: int = 2) -> tuple[Ran, ...]:
    submission = Submission(StoredArtifact("m"), StoredArtifact("v"), Static(), Sparsity(0.1))
    targets = [Sparsity(ratio) for ratio in RATIOS]
    return run_grid(server, submission, targets, RATES, at_once=at_once, tell=lambda _: None)  # type: ignore[arg-type]


def test_a_grid_runs_a_few_jobs_at_a_time_and_never_twice() -> None:
    server = Server()
    first = run(server, at_once=3)
    assert [one.cell for one in first] == [Cell(ratio, rate) for ratio in RATIOS for rate in RATES]
    assert (len(server.by_request), server.most) == (9, 3)
    for one in first:
        assert (one.job.spec.target, one.job.spec.dropout) == (Sparsity(one.cell.ratio), one.cell.dropout)
    again = run(server)
    assert [one.job.job_id for one in again] == [one.job.job_id for one in first]
    assert len(server.by_request) == 9


def test_what_failed_is_tried_once_more_by_the_next_call() -> None:
    server = Server(bad=2)
    first = run(server)
    assert [one.report is None for one in first] == [True, True] + [False] * 7
    second = run(server)
    assert all(one.report is not None for one in second)
    assert len(server.by_request) == 11


def test_without_dropout_the_rest_of_the_axis_is_left_out() -> None:
    server = Server(layers=0)
    assert [one.cell for one in run(server)] == [Cell(ratio, 0.0) for ratio in RATIOS]


def test_an_effect_of_dropout_that_depends_on_the_ratio_is_told() -> None:
    lost = grid(0.1, 0.0) | {Cell(0.7, 0.0): 0.0}
    notes = summary(ran(lost))["notes"]
    assert any("depends on the ratio" in note for note in notes)
    assert not any("depends on the ratio" in note for note in summary(ran(grid(0.1, 0.1)))["notes"])


@pytest.mark.parametrize("degrees", [5, 10, 30, 200])
def test_quantiles_are_those_of_student(degrees: int) -> None:
    for probability in (0.9, 0.975, 0.995):
        assert _t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held, draws = 0, 400
    for _ in range(draws):
        contrast = (rng.random(200) < 0.04) * rng.choice([-1.0, 1.0], 200, p=[0.75, 0.25])
        effect = paired_effect(contrast, np.arange(200), 0.95)
        assert effect is not None
        held += effect.low <= -0.02 <= effect.high
    assert held / draws >= 0.93


def test_groups_count_once() -> None:
    contrast = np.repeat(np.random.default_rng(2).normal(0, 0.1, 40), 10)
    alone = paired_effect(contrast, np.arange(400), 0.95)
    grouped = paired_effect(contrast, np.repeat(np.arange(40), 10), 0.95)
    assert alone is not None
    assert grouped is not None
    assert grouped.delta == pytest.approx(alone.delta, abs=1e-12)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert paired_effect(contrast, np.zeros(400), 0.95) is None


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (-0.2, -0.1, Reading.LOSS),
        (-0.2, -0.01, Reading.LOSS),
        (-0.04, -0.01, Reading.SMALL_LOSS),
        (-0.04, 0.02, Reading.NO_LOSS),
        (-0.2, 0.1, Reading.OPEN),
        (0.01, 0.1, Reading.GAIN),
    ],
)
def test_how_an_interval_reads(low: float, high: float, reading: Reading) -> None:
    assert read(Effect((low + high) / 2, low, high, 10), 0.05) is reading


def test_every_pair_of_readings_has_its_sentence() -> None:
    ends = [(-0.2, -0.1), (-0.04, -0.01), (-0.04, 0.02), (-0.2, 0.1)]
    spans = [Effect(sum(pair) / 2, *pair, 10) for pair in ends]
    effects = find_effects(_empty(), (), 0.95)
    said = {
        conclude(type(effects)(None, one, other, None), "accuracy", 0.05, is_against_original=False)
        for one in spans
        for other in (*spans, None)
    }
    assert len(said) == 20
    assert all(math.isfinite(len(text)) and text.endswith(".") for text in said)


def _empty() -> Any:
    from pruning_client.verification.effects import Values

    return Values({}, np.zeros(0), np.zeros(0))
