"""Turns what callers have - image folders, CSV, Parquet - into the dataset container that the service reads.

`.npz` and `.safetensors` pass through unchanged; the server checks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pruning_client.errors import BadInputError
from pruning_client.spec import RemoteFile, Source, StoredArtifact, Submission

_CONTAINERS = (".npz", ".safetensors")
_PARQUET = (".parquet", ".pq")
ACCEPTED = (
    "a .npz or .safetensors file with `inputs` and, optionally, `targets`, a folder of images DIR/<class>/*.png|jpg, "
    "a .csv file with a header row, or a .parquet file"
)

Note = Callable[[str], None]


def prepare_datasets(submission: Submission, folder: Path, note: Note) -> Submission:
    """Returns the request with every folder and table replaced by a container written into `folder`.

    Class names get their numbers from the training set where there is one, so that both sets agree.

    Raises:
        BadInputError: a dataset is missing, of no accepted kind, or inconsistent; the message says which part.
    """
    classes: tuple[str, ...] | None = None
    train = submission.train
    if train is not None:
        train, classes = _prepare(train, folder / "train", None, note)
    validation, _ = _prepare(submission.validation, folder / "validation", classes, note)
    samples = {
        method: _prepare(source, folder / f"method{number}", None, note)[0]
        for number, (method, source) in enumerate(submission.method_samples.items())
    }
    return dataclasses.replace(submission, train=train, validation=validation, method_samples=samples)


def check_dataset_path(path: str | Path) -> None:
    """Checks that `path` is there and of an accepted kind, without reading it.

    Raises:
        BadInputError: it is not.
    """
    _kind_of(Path(path))


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "images"
    if not path.exists():
        raise BadInputError(f"dataset {path} does not exist", reason="FILE_UNREADABLE")
    suffix = path.suffix.lower()
    if suffix in _CONTAINERS:
        return "container"
    if suffix == ".csv":
        return "csv"
    if suffix in _PARQUET:
        return "parquet"
    raise BadInputError(f"dataset {path} is of no accepted kind; accepted are {ACCEPTED}", reason="DATASET_UNREADABLE")


def _prepare(
    source: Source, folder: Path, classes: tuple[str, ...] | None, note: Note
) -> tuple[Source, tuple[str, ...] | None]:
    if isinstance(source, StoredArtifact | RemoteFile):
        return source, None
    path = Path(source)
    kind = _kind_of(path)
    if kind == "container":
        return path, None
    try:
        folder.mkdir()
        return _convert(path, kind, folder, classes, note)
    except OSError as error:
        raise BadInputError(
            f"cannot convert {path} in {folder}: {error.strerror} (TMPDIR names the folder for such files)"
        ) from error


def _convert(
    path: Path, kind: str, folder: Path, classes: tuple[str, ...] | None, note: Note
) -> tuple[Path, tuple[str, ...] | None]:
    destination = folder / f"{path.resolve().name}.npz"
    # numpy and the extras' libraries are imported only by those who need them.
    if kind == "images":
        from pruning_client.adapters.images import convert_images  # noqa: PLC0415

        return destination, convert_images(path, destination, classes, note)
    from pruning_client.adapters.tables import write_table  # noqa: PLC0415

    if kind == "csv":
        from pruning_client.adapters.csv_files import read_csv  # noqa: PLC0415

        table = read_csv(path)
    else:
        from pruning_client.adapters.parquet import read_parquet  # noqa: PLC0415

        table = read_parquet(path)
    return destination, write_table(table, path, destination, classes, note)
