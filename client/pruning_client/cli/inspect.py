"""`prune inspect`."""

from __future__ import annotations

import dataclasses
import re
from argparse import Namespace
from collections.abc import Sequence

from pruning_client.cli.connecting import connect
from pruning_client.cli.exit_codes import ExitCode
from pruning_client.cli.output import Output
from pruning_client.cli.paths import check_readable
from pruning_client.cli.progress import open_progress
from pruning_client.cli.request import arguments_by_position, axes_by_input
from pruning_client.errors import BadInputError
from pruning_client.spec import StoredArtifact
from pruning_client.values import ArtifactKind, Inspection

# What a table shows; `--json` has everything.
MAX_ROWS = 60
MAX_NAMES = 4


def run_inspect(options: Namespace, output: Output) -> ExitCode:
    """Shows what could be pruned in a model, and what is frozen and why."""
    check_readable("MODEL", options.model)
    if options.samples is not None:
        check_readable("--samples", options.samples)
        if options.inputs:
            raise BadInputError("--samples and --input exclude each other; give one of the two")
    arguments = arguments_by_position(options.arg)
    marked = [(position, free) for position, (_, free) in enumerate(options.inputs) if free]
    axes = axes_by_input([*marked, *options.dynamic_axes])
    with connect(options) as client:
        with open_progress(output.stderr) as view:
            artifact = client.upload_artifact(
                options.model,
                ArtifactKind.TORCHSCRIPT,
                lambda done, total: view.transfer(f"upload {options.model.name}", done, total),
            )
            view.note("inspecting: the server runs the model and follows its channels")
        source = StoredArtifact(artifact.artifact_id, artifact.sha256)
        inspection = client.inspect(
            source,
            samples=options.samples,
            inputs=[spec for spec, _ in options.inputs],
            arguments=arguments,
            dynamic_axes=axes,
        )
    found = dataclasses.asdict(inspection)
    output.answer(
        {
            "model": {
                "path": str(options.model),
                "artifact": artifact.artifact_id,
                "sha256": artifact.sha256,
                "bytes": artifact.size_bytes,
                "inputs": found["inputs"],
                "notes": found["notes"],
            },
            "layers": found["layers"],
            "groups": found["groups"],
            "frozen": found["frozen"],
        }
    )
    _print(inspection, output, chosen=bool(options.inputs) or options.samples is not None)
    return ExitCode.OK


def _print(inspection: Inspection, output: Output, *, chosen: bool) -> None:
    inputs = ", ".join(f"{'x'.join(map(str, one.shape)) or 'scalar'}:{one.dtype}" for one in inspection.inputs)
    output.line(f"Inputs  {inputs or 'none'}{'' if chosen else '  (not given; --input chooses others)'}")
    parameters = sum(layer.parameters for layer in inspection.layers)
    free = sum(layer.parameters for layer in inspection.layers if layer.group_indices)
    macs = sum(layer.macs for layer in inspection.layers)
    share = percent(free / parameters) if parameters else "none"
    # Products of two activations, as in attention, belong to no layer.
    output.line(f"Model   {parameters:,} parameters; its layers take {macs:,} MACs per sample")
    output.line(f"Free    {share} of the parameters are in layers that can shrink")
    _layers(inspection, output)
    _groups(inspection, output)
    _frozen(inspection, output)
    for note in inspection.notes:
        output.line(note)


def _layers(inspection: Inspection, output: Output) -> None:
    output.table(
        ["LAYER", "KIND", "SHAPE", "PARAMETERS", "MACS", "GROUPS", "TO"],
        [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                ranges(layer.group_indices) or "-",
                percent(layer.min_parameter_ratio) if layer.group_indices else "frozen",
            )
            for layer in inspection.layers
        ],
        optional=["SHAPE", "KIND"],
    )
    output.line("TO: the smallest share of a layer's parameters that could remain.")


def _groups(inspection: Inspection, output: Output) -> None:
    if not inspection.groups:
        return
    shown = inspection.groups[:MAX_ROWS]
    output.table(
        ["GROUP", "CHANNELS", "LAYERS THAT SHRINK TOGETHER"],
        [(index, group.channels, _names(group.layers)) for index, group in enumerate(shown)],
    )
    _more(output, len(inspection.groups) - len(shown), "groups")


def _frozen(inspection: Inspection, output: Output) -> None:
    if not inspection.frozen:
        return
    places: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for one in inspection.frozen:
        places.setdefault((one.reason, one.layers), {})[f"{one.op} {place(one.source)}".strip() or "-"] = None
    rows = [(reason, _names(list(found)), _names(layers)) for (reason, layers), found in places.items()]
    output.table(["FROZEN, SINCE", "AT", "LAYERS"], rows[:MAX_ROWS])
    _more(output, len(rows) - MAX_ROWS, "reasons")


def _more(output: Output, count: int, what: str) -> None:
    if count > 0:
        output.line(f"... and {count} more {what}; --json has all of them.")


def _names(names: Sequence[str]) -> str:
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def place(source: str) -> str:
    """`File "/a/b/conv.py", line 560, in forward` -> `conv.py:560`; other texts as they are, without their folders."""
    found = re.search(r'File "(?P<file>[^"]*)", line (?P<line>[0-9]+)', source)
    if found:
        return f"{found['file'].rpartition('/')[2]}:{found['line']}"
    return re.sub(r"^\S*/", "", source)


def percent(share: float) -> str:
    """`0.125` -> `12.5%`, `0.000234` -> `0.023%`."""
    return f"{share:.1%}" if share >= 0.01 or not share else f"{100 * share:.2g}%"


def ranges(numbers: Sequence[int]) -> str:
    """`0 1 2 5` -> `0-2 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
