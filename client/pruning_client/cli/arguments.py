"""The flags of every command."""

from __future__ import annotations

import argparse
import math
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from pruning_client.cli import types
from pruning_client.cli.verify_arguments import add_grid
from pruning_client.connection import DEFAULT_SERVER
from pruning_client.errors import BadInputError
from pruning_client.spec import Layout, Loss, Robustness, Scope, Task

_EPILOG = """\
exit codes: 0 succeeded, 1 the job failed or the required verdict was not reached, 2 bad usage or bad input,
3 server unreachable, 4 cancelled, 5 refused otherwise, 130 Ctrl-C (the job goes on)"""
# As the server has them; another name is refused there, with those that it knows.
_CRITERIA = (
    *(
        "l1",
        "l2",
        "lamp",
        "bn_scale",
        "fpgm",
        "taylor",
        "fisher",
        "apoz",
        "activation_mean",
        "reconstruction",
        "random",
    ),
    "auto",
)
_RATIO = types.number_in(0, 1, low_open=True)


class UsageError(BadInputError):
    """The command line makes no sense; `usage` is the short help of its command."""

    def __init__(self, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that `--json` can answer."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage())


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; the result's `command` names the command."""
    parser = _Parser(
        prog="prune",
        description="Prune TorchScript models on a pruning server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"prune {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    _add_submit(add("submit", "send a model and data, prune, and fetch the result"))
    verify = add(
        "verify-generalization", "tell loss to lowered dropout from loss to the parameters removed: a grid of jobs"
    )
    add_grid(verify)
    _add_strategy(verify, default="static")
    _add_run(verify)
    _add_data(verify)
    _add_client(verify)
    _add_inspect(add("inspect", "show what could be pruned in a model, and what is frozen and why"))
    _add_client(add("jobs", "list all jobs, newest first"))
    for name, help_text in (
        ("show", "show one job: what was asked, where it is, why it failed"),
        ("watch", "wait for a job, with progress"),
        ("cancel", "stop a job"),
        ("delete", "delete a job that has ended, and its files on the server"),
        ("fetch", "fetch the files of a job that has ended"),
    ):
        command = add(name, help_text)
        command.add_argument("job", metavar="JOB", help="id of the job")
        if name in ("watch", "fetch"):
            _add_outputs(command)
        _add_client(command)
    report = add("report", "turn a report into one HTML page")
    report.add_argument("source", metavar="OUT.json", type=Path, help="report, as written by --report")
    report.add_argument("-o", "--output", metavar="OUT.html", type=Path, required=True, help="page to write")
    report.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _version() -> str:
    try:
        return version("pruning-service")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _add_client(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("client")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("PRUNING_SERVER") or DEFAULT_SERVER,
        help="the server (default: $PRUNING_SERVER, else %(default)s)",
    )
    group.add_argument("--tls-ca", metavar="FILE", type=Path, help="CA that signed the server's certificate (PEM)")
    group.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="your certificate, where the server wants one (PEM)"
    )
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="the key of your certificate (PEM)")
    group.add_argument("--token-file", metavar="FILE", type=Path, help="file with the token to show to the server")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT.pt", type=Path, help="write the pruned model here")
    parser.add_argument("--report", metavar="OUT.json", type=Path, help="write the report here")
    parser.add_argument("--html", metavar="OUT.html", type=Path, help="write the report as one page here")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.pt", type=Path, help="TorchScript archive (torch.jit.save)")
    parser.add_argument(
        "--validation",
        metavar="DATA",
        type=Path,
        required=True,
        help=".npz, .safetensors, .csv, .parquet, or a folder of images DIR/<class>/*.png|jpg",
    )
    parser.add_argument("--train", metavar="DATA", type=Path, help="training set, for the generalization gap only")
    _add_outputs(parser)
    _add_target(parser)
    _add_strategy(parser)
    _add_run(parser)
    parser.add_argument(
        "--dropout",
        metavar="P",
        type=types.number_in(0, 1, high_open=True),
        help="rate of every dropout while fine-tuning (default: the model's own, lowered with pruning)",
    )
    _add_data(parser)
    verdict = parser.add_argument_group("verdict")
    verdict.add_argument(
        "--margin",
        metavar="M",
        type=types.number_in(0, 1, low_open=True, high_open=True),
        help="largest loss of the metric that is acceptable (default: 0.01)",
    )
    verdict.add_argument(
        "--require-verdict", metavar="PASS", type=str.upper, choices=("PASS",), help="else the job fails (exit code 1)"
    )
    verdict.add_argument(
        "--robustness",
        choices=tuple(Robustness),
        help="harder inputs that both models are compared on (default: all); docs/robustness.md",
    )
    verdict.add_argument(
        "--no-samples",
        action="store_true",
        help="keep single samples out of the report: their targets, predictions and small pictures",
    )
    _add_client(parser)
    parser.add_argument("--no-wait", action="store_true", help="exit once the job is accepted")


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target", "how far to prune: one of these; ratios are new / old")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--threshold",
        metavar="T",
        type=types.number_in(0, math.inf, low_open=True),
        help="weights with |w| < T become 0",
    )
    fraction = types.number_in(0, 1, high_open=True)
    one.add_argument("--sparsity", metavar="S", type=fraction, help="fraction to remove, in [0, 1)")
    one.add_argument("--parameter-ratio", metavar="R", type=_RATIO, help="parameters that may remain, in (0, 1]")
    one.add_argument("--macs-ratio", metavar="R", type=_RATIO, help="multiply-accumulates that may remain, in (0, 1]")
    one.add_argument("--latency-ratio", metavar="R", type=_RATIO, help="latency that may remain, in (0, 1]")
    one.add_argument("--max-accuracy-drop", metavar="D", type=fraction, help="smallest model within this drop")


def _add_strategy(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    group = parser.add_argument_group("strategy")
    group.add_argument(
        "--strategy",
        choices=("static", "dynamic", "conditional"),
        required=default is None,
        default=default,
        help="static: once; dynamic: while it is fine-tuned; conditional: where a condition holds",
    )
    group.add_argument(
        "--granularity",
        metavar="weight|channel|head|n:m",
        type=types.granularity,
        help="what is removed; 2:4 keeps 2 of every 4 weights (default: weight, or what a condition's features are of)",
    )
    group.add_argument(
        "--criterion",
        metavar="NAME",
        help=f"what counts as small: {', '.join(_CRITERIA)} (default: l1); docs/criteria.md",
    )
    group.add_argument(
        "--scope",
        choices=tuple(Scope),
        help="how pruning is shared out among layers (default: sensitivity for channels and heads, else global)",
    )
    channels = types.integer_from(1, 2**31 - 1)
    group.add_argument(
        "--min-channels", metavar="N", type=channels, help="channel, head: fewest that a layer keeps (default: 1)"
    )
    group.add_argument(
        "--multiple",
        metavar="N",
        type=channels,
        help="channel: kept ones are rounded up to a multiple (default: 8 for layers of 64 and more, else 1)",
    )
    group.add_argument(
        "--exclude-layers",
        metavar="NAME",
        action="append",
        default=[],
        help="layer to leave alone, * and ? are wildcards; again for more",
    )
    group.add_argument(
        "--condition",
        metavar="EXPR",
        help="conditional: a comparison over features, e.g. 'weight_correlation > 0.95'; docs/conditions.md",
    )
    group.add_argument(
        "--correction",
        choices=("holm", "benjamini-hochberg"),
        help="conditional: how p_harm is corrected for being tested often (default: holm); docs/conditions.md",
    )
    group.add_argument(
        "--risk",
        metavar="LOSS:PROBABILITY",
        type=types.risk,
        help="conditional: as far as certified to lose more than LOSS with at most this probability; docs/guarantees.md",
    )
    group.add_argument("--schedule", metavar="NAME", help="dynamic: cubic, rigl, soft or controller (default: cubic)")
    group.add_argument(
        "--continue-from",
        metavar="JOB",
        help="dynamic: an earlier job to prune on from, with new data; MODEL is its model",
    )
    group.add_argument(
        "--inference-gate",
        action="store_const",
        const=True,
        help="dynamic: the model skips work for inputs that do not need it, where that is faster",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        type=types.device,
        default="auto",
        help="where the job runs (default: auto)",
    )
    group.add_argument(
        "--epochs",
        metavar="N",
        type=types.integer_from(0, 1_000_000),
        help="of fine-tuning (default: automatic; 0: no gradient step)",
    )
    group.add_argument("--no-recovery", action="store_true", help="return the model as pruned")
    group.add_argument(
        "--seed",
        metavar="N",
        type=types.integer_from(0, 2**63 - 1),
        default=0,
        help="of every random choice (default: 0)",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=types.number_in(0, 10**9, low_open=True),
        help="the job's own deadline, from its start (default: the server's)",
    )
    group.add_argument(
        "--priority",
        metavar="N",
        type=types.integer_from(-10, 10),
        default=0,
        help="among your own waiting jobs, from -10 to 10; higher goes first (default: 0)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data", "inputs become (x * scale - mean) / std, per channel")
    group.add_argument(
        "--task", choices=tuple(Task), metavar="NAME", help=f"what is judged: {', '.join(Task)} (default: inferred)"
    )
    group.add_argument(
        "--loss",
        metavar="NAME|LOSS.pt",
        help=f"{', '.join(Loss)}, or a TorchScript module: loss(output, target) (default: inferred)",
    )
    group.add_argument(
        "--scale",
        metavar="F",
        type=types.nonzero_number,
        help="factor on the stored inputs (default: 1/255 for uint8 into a float model, else 1)",
    )
    group.add_argument(
        "--mean",
        metavar="A,B,C",
        type=types.numbers,
        default=(),
        help="taken off, per channel (default: 0; --mean=-1,0,1 for negatives)",
    )
    group.add_argument(
        "--std", metavar="A,B,C", type=types.positive_numbers, default=(), help="divided by, per channel (default: 1)"
    )
    group.add_argument("--layout", choices=tuple(Layout), help="order of the axes of stored images (default: nchw)")
    group.add_argument(
        "--output-selector",
        metavar="logits",
        default="",
        help="part of a dict, tuple or list output that is judged: a key, an index, or 0.logits",
    )
    _add_arguments(group)


def _add_arguments(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--dynamic-axes",
        metavar="[INPUT:]AXES",
        type=types.dynamic_axes,
        action="append",
        default=[],
        help="axes of any length, such as 2,3 for height and width: checked at a second length too; again for more inputs",
    )
    group.add_argument(
        "--arg",
        metavar="1=16000",
        type=types.scalar_argument,
        action="append",
        default=[],
        help="scalar argument of forward by position; again for more",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL.pt", type=Path, help="TorchScript archive (torch.jit.save)")
    parser.add_argument(
        "--input",
        metavar="1x3x32x32[:dtype]",
        type=types.tensor_spec,
        action="append",
        default=[],
        dest="inputs",
        help="shape of an input of forward, ? behind a size of any length (1x3x64?x64?); again for more (default: as traced,"
        " or inferred)",
    )
    parser.add_argument(
        "--samples",
        metavar="DATA",
        type=Path,
        default=None,
        help=".npz or .safetensors as for `submit`: run the model on its first samples instead",
    )
    _add_arguments(parser)
    _add_client(parser)
