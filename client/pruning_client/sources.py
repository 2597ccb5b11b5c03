"""Which files a request names by path, and the request with stored artifacts in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pruning_client.errors import BadInputError
from pruning_client.spec import Loss, RemoteFile, Source, StoredArtifact, Submission
from pruning_client.values import ArtifactKind


def paths_of(submission: Submission) -> dict[Path, ArtifactKind]:
    """Returns the files that the request names by path, each once, with what they are.

    Raises:
        BadInputError: one file is given as two kinds of thing.
    """
    found: dict[Path, ArtifactKind] = {}

    def note(source: Source | None, kind: ArtifactKind) -> None:
        if source is None or isinstance(source, StoredArtifact | RemoteFile):
            return
        path = Path(source)
        if found.setdefault(path, kind) is not kind:
            raise BadInputError(f"{path} is given both as {found[path]} and as {kind}")

    note(submission.model, ArtifactKind.TORCHSCRIPT)
    note(submission.validation, ArtifactKind.DATASET)
    note(submission.train, ArtifactKind.DATASET)
    if submission.loss is not None and not is_shipped_loss(submission.loss):
        note(submission.loss, ArtifactKind.LOSS)
    for samples in submission.method_samples.values():
        note(samples, ArtifactKind.DATASET)
    return found


def is_shipped_loss(loss: Loss | Source) -> bool:
    """Whether it is the name of a loss that ships with the service, not a file."""
    return isinstance(loss, str) and loss in set(Loss)


def replace_paths(submission: Submission, stored: Callable[[Path], StoredArtifact]) -> Submission:
    """Returns the request with what `stored` gives for each path in the path's place."""

    def resolve(source: Source) -> Source:
        return source if isinstance(source, StoredArtifact | RemoteFile) else stored(Path(source))

    loss = submission.loss
    return dataclasses.replace(
        submission,
        model=resolve(submission.model),
        validation=resolve(submission.validation),
        train=None if submission.train is None else resolve(submission.train),
        loss=loss if loss is None or is_shipped_loss(loss) else resolve(loss),
        method_samples={method: resolve(source) for method, source in submission.method_samples.items()},
    )
