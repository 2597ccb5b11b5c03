"""`python -m helpers.chaos`: worlds one after the other until time is up or the kills are done; exit code 1 if a promise broke."""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from pathlib import Path

from helpers import faulty_server
from helpers.chaos.world import Outcome, World

KILLS_PER_WORLD = 50


def main() -> int:
    """Runs, tells, and keeps the folder of a world in which something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="kills of the server; 0: as many as the time allows")
    parser.add_argument("--hours", type=float, default=0.0, help="go on for so long, whatever --kills says")
    parser.add_argument("--minutes", type=float, default=0.0, help="likewise")
    parser.add_argument("--seed", type=int, default=0, help="of the first world; a world that broke tells its own")
    parser.add_argument("--bug", choices=sorted(faulty_server.BUGS), default="", help="the control: must fail")
    options = parser.parse_args()
    seconds = options.hours * 3600 + options.minutes * 60
    start, total, seed = time.monotonic(), Outcome(), options.seed

    def is_over() -> bool:
        return bool(seconds) and time.monotonic() - start > seconds

    while not is_over() and (seconds or total.server_kills < options.kills):
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        wanted = KILLS_PER_WORLD if seconds else min(KILLS_PER_WORLD, options.kills - total.server_kills)
        found = World(folder, seed, options.bug).run(wanted, is_over)
        total.add(found)
        print(
            f"seed {seed}: {found.server_kills} kills of the server, {found.kills['worker']} of workers,"
            f" {found.facts} facts, {len(found.violations)} violations; {time.monotonic() - start:.0f} s",
            flush=True,
        )
        for text in found.violations:
            print(f"  BROKEN: {text}", flush=True)
        if found.violations:
            print(f"  its folder is kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
        seed += 1
    tell(total, time.monotonic() - start)
    return 1 if total.violations else 0


def tell(total: Outcome, seconds: float) -> None:
    """The totals, and where servers died."""
    print(f"kills of the server: {total.server_kills}, of workers: {total.kills['worker']}, in {seconds:.0f} s")
    print(f"calls: {dict(collections.Counter(total.calls).most_common())}")
    print(f"deaths: {dict(total.kills.most_common())}")
    print(f"facts: {total.facts}; promises broken: {len(total.violations)}")


if __name__ == "__main__":
    sys.exit(main())
