"""`python -m pruning_client` is `prune`."""

from __future__ import annotations

import sys

from pruning_client.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
