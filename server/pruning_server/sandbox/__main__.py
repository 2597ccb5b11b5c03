"""Puts this process into the sandbox and then becomes the command.

    python -P -s -m pruning_server.sandbox POLICY -m MODULE [ARGUMENT ...]
    python -P -s -m pruning_server.sandbox POLICY SCRIPT [ARGUMENT ...]
    python -P -s -m pruning_server.sandbox check

`check` tries everything out in a process of its own (`try FOLDER`), prints one line of
JSON (`trial.py`) and exits with 0 if nothing is lacking.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from pruning_server.sandbox.inside import enter
from pruning_server.sandbox.kernel import LackError
from pruning_server.sandbox.policy import EXIT_NO_SANDBOX, SAYS, from_text


def main() -> int:
    """Runs the command line; returns only where the command does not exit by itself."""
    if sys.argv[1:2] in (["check"], ["try"]):
        from pruning_server.sandbox import trial  # noqa: PLC0415 - no worker needs it

        return trial.check() if sys.argv[1] == "check" else trial.try_out(Path(sys.argv[2]))
    try:
        enter(from_text(sys.argv[1]))
    except (LackError, OSError, ValueError, TypeError, KeyError, IndexError) as error:
        print(f"{SAYS} {error}", file=sys.stderr)
        return EXIT_NO_SANDBOX
    rest = sys.argv[2:]
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
