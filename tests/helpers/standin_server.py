"""The real server with a stand-in for its workers: `python standin_server.py` with the flags of `pruning-server`.

The swap is made here, from outside: the product has no setting that names another worker.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from pruning_server.adapters import executor, probe
from pruning_server.adapters.process import python_command

PROGRAM = (str(Path(__file__)),)


def main() -> int:
    worker = python_command(str(Path(__file__).with_name("standin_worker.py")))
    executor.LocalExecutor = functools.partial(executor.LocalExecutor, worker_command=worker)  # type: ignore[assignment,misc]
    probe.WorkerProbe = functools.partial(probe.WorkerProbe, command=worker)  # type: ignore[assignment,misc]
    from pruning_server.__main__ import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
