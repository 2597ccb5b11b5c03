"""One measurement per job, kept in a file so that parts can be run again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """What one job came to, judged on images that it never saw.

    Attributes:
        original, accuracy: percent, of the unpruned and of the delivered model.
        macs_ratio: new / old; None where nothing is removed.
        speed_up: original / pruned seconds at batch 64; None where it was not measured.
        layout_speed_up: what of it the unpruned model gets, too, with its kernels stored channels last.
        bytes_ratio: new / old archive; `sparsity`: fraction of weights that are zero; both only for single weights.
        seconds: from the start of the job to its end.
        threads: that it might use.
    """

    original: float
    accuracy: float
    seconds: float
    threads: int
    macs_ratio: float | None = None
    speed_up: float | None = None
    layout_speed_up: float | None = None
    bytes_ratio: float | None = None
    sparsity: float | None = None
    kept: str = ""


class Results:
    """Measurements by (model, setting, seed); written to a file after each, where there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, Measured] = {}
        if path is not None and path.is_file():
            known = json.loads(path.read_text())
            self._found = {key: Measured(**fields) for key, fields in known.items()}

    def has(self, model: str, setting: str, seed: int) -> bool:
        """Whether it is measured already."""
        return _key(model, setting, seed) in self._found

    def add(self, model: str, setting: str, seed: int, measured: Measured) -> None:
        """Keeps one."""
        self._found[_key(model, setting, seed)] = measured
        if self._path is not None:
            every = {key: dataclasses.asdict(one) for key, one in self._found.items()}
            self._path.write_text(json.dumps(every, indent=1))

    def of(self, model: str, setting: str) -> dict[int, Measured]:
        """By seed, ascending."""
        start = _key(model, setting, 0)[:-1]
        found = {int(key[len(start) :]): one for key, one in self._found.items() if key.startswith(start)}
        return dict(sorted(found.items()))


def _key(model: str, setting: str, seed: int) -> str:
    return f"{model} | {setting} | {seed}"
