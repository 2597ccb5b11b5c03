"""What the server would refuse of a criterion is said before anything is sent."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pruning_client.cli.preflight import preflight
from pruning_client.client import PruningClient
from pruning_client.errors import InvalidRequestError, UnimplementedError
from pruning_client.spec import Granularity, NmPattern, Sparsity, Static, Submission, Threshold
from pruning_client.values import CriterionInfo, ServerInfo, StrategyInfo

ALL = (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM)
OFFERED = StrategyInfo(
    name="static", summary="", available=True, granularities=ALL, targets=("sparsity",),
    criteria=(CriterionInfo("l1", "", "", ALL), CriterionInfo("fpgm", "", "", ALL[1:3]), CriterionInfo("old", "", "")),
)  # fmt: skip


class Server:
    def server_info(self) -> ServerInfo:
        fields: dict[str, Any] = dict.fromkeys(ServerInfo.__dataclass_fields__)
        return ServerInfo(**{**fields, "devices": (), "max_artifact_bytes": 0, "version": "1"})

    def list_strategies(self) -> tuple[StrategyInfo, ...]:
        return (OFFERED,)

    def check(self, submission: Submission) -> None:
        """Takes everything."""


def ask(criterion: str, granularity: Granularity) -> None:
    pattern = NmPattern(2, 4) if granularity is Granularity.NM else None
    strategy = Static(criterion=criterion, granularity=granularity, nm_pattern=pattern)
    submission = Submission(model="m.pt", validation="v.npz", strategy=strategy, target=Sparsity(0.5))
    preflight(cast("PruningClient", Server()), submission, [])


@pytest.mark.parametrize("granularity", [Granularity.WEIGHT, Granularity.NM])
def test_a_criterion_for_channels_is_refused_for_weights_with_those_that_fit(granularity: Granularity) -> None:
    with pytest.raises(InvalidRequestError, match=f"with granularity {granularity} use one of l1$"):
        ask("fpgm", granularity)


@pytest.mark.parametrize("granularity", ALL)
def test_others_pass(granularity: Granularity) -> None:
    ask("l1", granularity)
    ask("old", granularity)


def test_it_passes_for_channels() -> None:
    ask("fpgm", Granularity.CHANNEL)


def test_a_target_that_is_not_taken_is_refused_with_those_that_are() -> None:
    submission = Submission(model="m.pt", validation="v.npz", strategy=Static(), target=Threshold(0.5))
    with pytest.raises(UnimplementedError, match=r"static pruning to a threshold .*; give one of sparsity$"):
        preflight(cast("PruningClient", Server()), submission, [])
