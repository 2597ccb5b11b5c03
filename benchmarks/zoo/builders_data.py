"""Other people's TorchScript files and trained weights, where the maintainers' data folder is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from helpers.resnet import CifarResNet
from helpers.shared_data import SHARED_DATA
from zoo.entries import BOTH, Entry, Form, Inputs, MissingPartError, Source, floats, uniform


def entries() -> tuple[Entry, ...]:
    """All of them; a file is looked for when it is built."""
    return (
        _file("policy-go2", "policies", "policy_go2.pt", floats(45)),
        _file("policy-go2-himloco", "policies", "policy_go2_himloco.pt", floats(270)),
        _file("policy-g1-lstm", "policies", "policy_g1_loco_lstm.pt", floats(96), (1,)),
        _file("wtw-adaptation", "policies", "wtw_adaptation.pt", floats(2100)),
        _file("silero-vad", "audio", "silero_vad.pt", _voice, (1,)),
        _trained("resnet20-cifar10", 20),
        _trained("resnet56-cifar10", 56),
    )


def _path(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_file():
        raise MissingPartError(f"needs the maintainers' data file {name}, which is not part of the repository")
    return path


def _voice(batch: int) -> Inputs:
    return uniform(batch, 512), 16000


def _file(
    name: str,
    family: str,
    file: str,
    inputs: Callable[[int], Inputs],
    batches: tuple[int, ...] = (2, 3),
    stuck: str = "",
) -> Entry:
    def build() -> nn.Module:
        module: nn.Module = torch.jit.load(str(_path(f"torchscript/{file}")))
        return module

    return Entry(name, family, Source.DATA, build, inputs, (Form.FILE,), batches, stuck)


def _trained(name: str, depth: int) -> Entry:
    def build() -> nn.Module:
        net = CifarResNet(depth)
        net.load_state_dict(torch.load(_path(f"resnet{depth}_cifar10.state_dict.pt"), weights_only=True))
        return net

    return Entry(name, "residual", Source.DATA, build, floats(3, 32, 32), BOTH)
