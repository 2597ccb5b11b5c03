"""What the caller's data can say about a model, as Protocols; `worker/` fills them. Whoever asks for nothing pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.values import Mask

Part = Literal["fit", "select", "calibrate"]
"""Never *report*: nothing is decided on that."""


@dataclass(frozen=True)
class SampleScores:
    """What each sample of a part says of a model.

    Attributes:
        metric: [n], higher is better.
        loss: [n].
        units: [n] int64: samples with the same number belong together, and are one observation.
    """

    metric: np.ndarray
    loss: np.ndarray
    units: np.ndarray

    def __len__(self) -> int:
        return len(self.metric)

    @property
    def mean_metric(self) -> float:
        """The mean over samples; NaN where the model gave no numbers."""
        return float(np.mean(self.metric)) if len(self.metric) else float("nan")

    @property
    def mean_loss(self) -> float:
        """The mean over samples; NaN where the model gave no numbers."""
        return float(np.mean(self.loss)) if len(self.loss) else float("nan")


class Evidence(Protocol):
    """What the caller's data says of the unpruned model; every method runs it, deterministically by the job's seed."""

    @property
    def samples(self) -> int:
        """Samples of the fit split."""
        ...

    def gradients(
        self, names: Collection[str], *, samples: int, batch_size: int = 1
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """The loss's gradient for each named stored tensor, per batch of fit samples, in evaluation mode.

        Of a loss that is a mean over the batch. Where the original's own output is the target the loss is flat; there
        it is the gradient of a random projection of the output, whose squares average to the Gauss-Newton matrix's
        diagonal. A tensor that no gradient reaches is all zeros. Each mapping is the receiver's to keep.

        Raises:
            JobFailureError: no gradient flows through the model.
        """
        ...

    def calls(self, visit: Callable[[LinearCall], None], *, samples: int, names: Collection[str] | None = None) -> None:
        """Runs fit samples in a seeded order and shows every use of a stored kernel."""
        ...

    def original(self, part: Part) -> SampleScores:
        """The unpruned model on a part."""
        ...

    def trial(
        self, removed: Removal | Mapping[str, Mask], *, part: Part = "select", renormalize: bool = False
    ) -> SampleScores:
        """The model with channels (a removal) or weights (masks by name) switched off, judged on a part.

        Nothing is recovered; with `renormalize` the statistics of normalizations are measured anew on fit first. A
        model whose outputs are no numbers then scores NaN.
        """
        ...

    def divergence(
        self,
        removed: Removal | Mapping[str, Mask],
        *,
        part: Part = "select",
        updates: Mapping[str, torch.Tensor] | None = None,
        samples: int | None = None,
    ) -> float:
        """How far the outputs without channels or weights are from the original's, on average; 0 where they are equal.

        The distillation loss of the job's task: smooth, and known without labels. NaN where outputs are no numbers.

        Args:
            removed: as in `trial`.
            part: that is judged on.
            updates: new values of stored tensors by name, in full shape, written before anything is switched off.
            samples: at most so many; None: all.
        """
        ...

    def latency_ratio(self, removal: Removal, *, careful: bool = False) -> float:
        """Measured on the job's device: after / before, medians of alternating runs of the really shrunk model.

        `careful`: for longer, as the report does it. No two measurements are the same.
        """
        ...
