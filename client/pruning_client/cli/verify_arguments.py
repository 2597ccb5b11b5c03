"""The flags that `prune verify-generalization` has beside those of `prune submit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pruning_client.cli import types

# Names as in the request; each a fraction.
TARGETS = ("sparsity", "parameter-ratio", "macs-ratio", "latency-ratio")
MAX_CELLS = 100
MAX_AT_ONCE = 16


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Adds model, data, grid, outputs and margin."""
    parser.add_argument("model", metavar="MODEL.pt", type=Path, help="TorchScript archive (torch.jit.save)")
    parser.add_argument("--validation", metavar="DATA", type=Path, required=True, help="as for `prune submit`")
    parser.add_argument("--train", metavar="DATA", type=Path, help="training set, for the generalization gap only")
    grid = parser.add_argument_group("grid", "one job for each ratio and each dropout rate")
    grid.add_argument(
        "--ratios",
        metavar="A,B,C",
        type=types.distinct_fractions,
        required=True,
        help="how far to prune, as --target says: a sparsity is the fraction removed, the other ratios are new / old",
    )
    grid.add_argument(
        "--dropout",
        metavar="A,B,C",
        type=types.distinct_fractions,
        required=True,
        help="rates of every dropout of the model while it is fine-tuned, each in [0, 1)",
    )
    grid.add_argument(
        "--target",
        choices=TARGETS,
        help="what the ratios are (default: sparsity for weights, macs-ratio for channels and heads)",
    )
    grid.add_argument(
        "--parallel",
        metavar="N",
        type=types.integer_from(1, MAX_AT_ONCE),
        default=2,
        help="jobs on the server at a time (default: 2)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="write verification.json, .html and all reports here"
    )
    parser.add_argument("--html", metavar="OUT.html", type=Path, help="write the page here")
    parser.add_argument(
        "--margin",
        metavar="M",
        type=types.number_in(0, 1, low_open=True, high_open=True),
        help="largest loss of the metric that is acceptable (default: 0.01)",
    )
