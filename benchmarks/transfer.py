"""A large artifact goes up and down again through a connection that is cut at random offsets; run by `make bench-transfer`.

Prints, per direction: seconds, bytes per second, cuts survived, SHA-256 equal or not, and how much the server's resident
memory grew at its worst. The traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from helpers.cutting_proxy import CuttingProxy
from helpers.running_server import RunningServer
from pruning_client import ArtifactKind, PruningClient

MIB = 1 << 20


def write_noise(path: Path, size_bytes: int, seed: int) -> str:
    """Writes incompressible bytes and returns their SHA-256."""
    rng, digest = random.Random(seed), hashlib.sha256()
    with path.open("wb") as file:
        while size_bytes:
            block = rng.randbytes(min(size_bytes, 8 * MIB))
            file.write(block)
            digest.update(block)
            size_bytes -= len(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PeakMemory:
    """Samples the server's resident memory while open; `growth_bytes` is the worst over the start."""

    def __init__(self, server: RunningServer) -> None:
        self._server, self._stop = server, threading.Event()
        self._start = self._peak = server.rss_bytes()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(0.05):
            self._peak = max(self._peak, self._server.rss_bytes())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth_bytes(self) -> int:
        """Peak minus start."""
        return self._peak - self._start


def main() -> int:
    """Runs both directions and returns 0 if every byte arrived and memory stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--cuts", type=int, default=5, help="per direction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-growth-mib", type=int, default=64)
    options = parser.parse_args()
    size, rng, good = options.mib * MIB, random.Random(options.seed), True
    with tempfile.TemporaryDirectory() as folder:
        source, copy = Path(folder) / "source.bin", Path(folder) / "copy.bin"
        sha256 = write_noise(source, size, options.seed)
        with RunningServer(Path(folder) / "data") as server:
            artifact_id = ""
            for direction in ("upload", "download"):
                at = sorted(rng.randrange(size) for _ in range(options.cuts))
                # The proxy counts per connection: what each one lives for is the way from the last cut to the next.
                lives = [high - low for low, high in itertools.pairwise([0, *at])]
                cuts = {f"{direction}_cuts": lives}
                start = time.monotonic()
                with (
                    PeakMemory(server) as memory,
                    CuttingProxy(server.address, **cuts) as proxy,
                    PruningClient(proxy.address) as client,
                ):
                    if direction == "upload":
                        artifact_id = client.upload_artifact(source, ArtifactKind.DATASET).artifact_id
                        arrived = client.get_artifact(artifact_id).sha256
                    else:
                        client.download_artifact(artifact_id, copy)
                        arrived = sha256_of(copy)
                seconds = time.monotonic() - start
                growth_mib = memory.growth_bytes / MIB
                good &= arrived == sha256 and growth_mib < options.max_growth_mib and proxy.cuts_done == options.cuts
                print(
                    f"{direction:8} {options.mib} MiB in {seconds:.1f} s ({options.mib / seconds:.0f} MiB/s), "
                    f"{proxy.cuts_done} cuts, sha256 {'equal' if arrived == sha256 else 'DIFFERS'}, "
                    f"server memory +{growth_mib:.1f} MiB",
                    flush=True,
                )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
