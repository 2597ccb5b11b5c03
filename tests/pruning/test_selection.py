"""What a request may prune."""

from __future__ import annotations

import pytest
import torch

from helpers import zoo
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import WeightKind, WeightSurvey, find_weights
from pruning_server.pruning.selection import Selection, select


@pytest.fixture(scope="module")
def text() -> torch.jit.ScriptModule:
    return zoo.scripted(zoo.Text())


@pytest.fixture(scope="module")
def survey(text: torch.jit.ScriptModule) -> WeightSurvey:
    return find_weights(text)


def chosen(survey: WeightSurvey, *patterns: str, biases: bool = False, norms: bool = False) -> Selection:
    return select(survey, include_biases=biases, include_norms=norms, exclude_layers=patterns)


def names(selection: Selection) -> set[str]:
    return {weight.name for weight in selection.weights}


def test_biases_and_norms_only_where_asked(survey: WeightSurvey) -> None:
    kinds = {weight.name: weight.kind for weight in survey.weights}
    for biases in (False, True):
        for norms in (False, True):
            left_out = ({WeightKind.BIAS} if not biases else set()) | ({WeightKind.NORM} if not norms else set())
            expected = {name for name, kind in kinds.items() if kind not in left_out}
            assert names(chosen(survey, biases=biases, norms=norms)) == expected


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("lstm", {"lstm.weight_ih_l0"}),
        ("lstm.*", {"lstm.weight_ih_l0"}),
        ("*.weight_hh_l1", {"lstm.weight_hh_l1"}),
        ("attention.out_proj", {"attention.out_proj.weight"}),
        ("output", {"words.weight"}),  # tied: leaving one name alone leaves the memory alone
        ("w?rds.weight", {"words.weight"}),
    ],
)
def test_layers_are_excluded_by_the_names_of_weights_and_of_what_is_around_them(
    survey: WeightSurvey, pattern: str, gone: set[str]
) -> None:
    selection = chosen(survey, pattern)
    assert not gone & names(selection)
    reported = {name for use in selection.frozen if pattern in use.reason for name in use.layers}
    assert gone <= reported
    assert names(selection) | reported == names(chosen(survey))
    assert selection.notes == ()


def test_a_pattern_that_matches_nothing_is_noted(survey: WeightSurvey) -> None:
    selection = chosen(survey, "encoder.*", "lst")
    assert names(selection) == names(chosen(survey))
    assert len(selection.notes) == 2
    assert "'encoder.*'" in selection.notes[0]


def test_inputs_are_the_stored_tensors(survey: WeightSurvey, text: torch.jit.ScriptModule) -> None:
    inputs = {one.name: one.tensor for one in chosen(survey).inputs(text)}
    assert inputs["words.weight"].data_ptr() == text.words.weight.data_ptr()
    assert set(chosen(survey).tensors(text)) == set(inputs)


def refusal(survey: WeightSurvey, *patterns: str) -> JobFailureError:
    with pytest.raises(JobFailureError) as refused:
        chosen(survey, *patterns)
    assert refused.value.reason is Reason.NOTHING_PRUNABLE
    return refused.value


def test_nothing_prunable_says_why(survey: WeightSurvey) -> None:
    assert "exclude_layers" in refusal(survey, "*").message
    empty = find_weights(zoo.scripted(torch.nn.Sequential(torch.nn.ReLU())))
    assert "holds none" in refusal(empty).message
    frozen = WeightSurvey((), find_weights(zoo.scripted(zoo.Frozenish())).frozen)
    assert "slogdet" in refusal(frozen).message
