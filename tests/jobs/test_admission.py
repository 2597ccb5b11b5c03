"""A criterion that scores whole channels is refused for single weights before anything is queued."""

from __future__ import annotations

import pytest

from helpers.specs import good_spec
from helpers.standin_worker import PROBE
from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.jobs.admission import check_catalogue
from pruning_server.jobs.probe import CriterionInfo, Probe, StrategyInfo
from pruning_server.spec.request import Granularity, NmPattern, StaticStrategy

CHANNELS = (Granularity.CHANNEL, Granularity.HEAD)
CRITERIA = (
    CriterionInfo(name="l1", summary="", source="", granularities=tuple(Granularity)),
    CriterionInfo(name="fpgm", summary="", source="", granularities=CHANNELS),
    CriterionInfo(name="silent", summary="", source=""),
)
SERVER = Probe(
    torch_version="0", cuda_version=None, python_version="3", devices=PROBE.devices,
    strategies=(StrategyInfo(name="static", summary="", available=True, criteria=CRITERIA),),
)  # fmt: skip


def strategy(criterion: str, granularity: Granularity) -> StaticStrategy:
    pattern = NmPattern(n=2, m=4) if granularity is Granularity.NM else None
    return StaticStrategy(criterion=criterion, granularity=granularity, nm_pattern=pattern)


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.NM])
def test_it_is_refused_with_those_that_fit(granularity: Granularity) -> None:
    with pytest.raises(InvalidRequestError, match=rf"granularity {granularity.value} use one of l1$") as refused:
        check_catalogue(good_spec(strategy=strategy("fpgm", granularity)), SERVER)
    assert refused.value.reason is Reason.INVALID_FIELD
    assert [one.field for one in refused.value.violations] == ["spec.static.criterion"]


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("criterion", ["l1", "silent"])
def test_others_pass(criterion: str, granularity: Granularity) -> None:
    check_catalogue(good_spec(strategy=strategy(criterion, granularity)), SERVER)


@pytest.mark.parametrize("granularity", CHANNELS)
def test_it_passes_for_channels(granularity: Granularity) -> None:
    check_catalogue(good_spec(strategy=strategy("fpgm", granularity)), SERVER)
