"""`prune inspect`."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from pruning_client.cli.connecting import connect
from pruning_client.cli.exit_codes import ExitCode
from pruning_client.cli.output import Output
from pruning_client.cli.paths import check_readable
from pruning_client.cli.progress import open_progress
from pruning_client.cli.request import arguments_by_position
from pruning_client.spec import StoredArtifact
from pruning_client.values import ArtifactKind, Inspection


def run_inspect(options: Namespace, output: Output) -> ExitCode:
    """Shows what could be pruned in a model, and what is frozen and why."""
    check_readable("MODEL", options.model)
    arguments = arguments_by_position(options.arg)
    with connect(options) as client:
        with open_progress(output.stderr) as view:
            artifact = client.upload_artifact(
                options.model,
                ArtifactKind.TORCHSCRIPT,
                lambda done, total: view.transfer(f"upload {options.model.name}", done, total),
            )
        source = StoredArtifact(artifact.artifact_id, artifact.sha256)
        inspection = client.inspect(source, inputs=options.inputs, arguments=arguments)
    found = dataclasses.asdict(inspection)
    output.answer(
        {
            "model": {
                "path": str(options.model),
                "artifact": artifact.artifact_id,
                "sha256": artifact.sha256,
                "bytes": artifact.size_bytes,
                "inputs": found["inputs"],
            },
            "layers": found["layers"],
            "groups": found["groups"],
            "frozen": found["frozen"],
        }
    )
    _print(inspection, output)
    return ExitCode.OK


def _print(inspection: Inspection, output: Output) -> None:
    output.table(
        ["LAYER", "KIND", "SHAPE", "PARAMETERS", "MACS", "GROUPS", "CAN SHRINK TO"],
        [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                " ".join(map(str, layer.group_indices)),
                f"{layer.min_parameter_ratio:.1%}",
            )
            for layer in inspection.layers
        ],
    )
    if inspection.groups:
        output.table(
            ["GROUP", "CHANNELS", "LAYERS"],
            [(index, group.channels, ", ".join(group.layers)) for index, group in enumerate(inspection.groups)],
        )
    if inspection.frozen:
        output.table(
            ["FROZEN BY", "WHERE", "WHY", "LAYERS"],
            [(f.op, f.source, f.reason, ", ".join(f.layers)) for f in inspection.frozen],
        )
