"""Loading the caller's archive, as often as needed, and what lies beside the model in it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.raised import is_out_of_memory, sentence

_EXTRA_FOLDER = "extra/"


@dataclass(frozen=True)
class ModelArchive:
    """An archive on disk and the device that it is loaded to.

    Attributes:
        extra_files: the caller's `_extra_files`; torch drops them on saving unless they are handed over again.
    """

    path: Path
    device: str
    extra_files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path, device: str) -> ModelArchive:
        """Reads what lies beside the model."""
        try:
            opened = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            text = "The model's file is no archive any more; try again."
            raise JobFailureError(Reason.MODEL_NOT_LOADABLE, text) from error
        with opened as archive:
            names = archive.namelist()
            root = f"{names[0].split('/', 1)[0]}/" if names else ""
            extra = [name for name in names if name.startswith(root + _EXTRA_FOLDER) and not name.endswith("/")]
            files = {name.removeprefix(root + _EXTRA_FOLDER): archive.read(name) for name in extra}
        return cls(path, device, files)

    def load(self) -> torch.jit.ScriptModule:
        """A fresh copy of the model, in the mode in which it was saved.

        Raises:
            JobFailureError: torch does not load it (MODEL_NOT_LOADABLE).
        """
        return load_module(self.path, self.device, "model")


def load_module(
    path: Path, device: str, what: str, reason: Reason = Reason.MODEL_NOT_LOADABLE
) -> torch.jit.ScriptModule:
    """Loads a TorchScript archive to a device; `what` it is, for the message.

    Raises:
        JobFailureError: torch does not load it (`reason`).
    """
    try:
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError, torch.jit.Error) as error:
        if is_out_of_memory(error):
            raise
        text = (
            f"torch {torch.__version__} cannot load the {what}: {sentence(error)} "
            "Save it again with a torch of about this version, and check that torch.jit.load opens it."
        )
        raise JobFailureError(reason, text) from error
    return module
