"""Classic nets, written in the style of their papers, for archives that everybody uploads."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from zoo.classic_parts import (
    Fcn,
    GoogLeNet,
    ResNet,
    ShuffleNetV2,
    alexnet,
    mnasnet,
    mobilenet_v3,
    squeezenet,
    vgg,
)
from zoo.entries import Entry, Inputs, Source, floats

_IMAGE = floats(3, 64, 64)


def entries() -> tuple[Entry, ...]:
    """All of them."""
    return (
        _entry("resnet50", "residual", lambda: ResNet((3, 4, 6, 3), 1000), floats(3, 224, 224)),
        _entry("resnet50-narrow", "residual", lambda: ResNet((3, 4, 6, 3), 10, base=16)),
        _entry("resnext", "grouped", lambda: ResNet((1, 1, 1, 1), 10, groups=8, width=8, base=32)),
        _entry("vgg", "plain", lambda: vgg(batch_norm=False)),
        _entry("vgg-batch-norm", "plain", lambda: vgg(batch_norm=True)),
        _entry("alexnet", "plain", alexnet, floats(3, 96, 96)),
        _entry("googlenet", "inception", GoogLeNet),
        _entry("squeezenet", "inception", squeezenet),
        _entry("shufflenet-v2", "shuffle", ShuffleNetV2),
        _entry("mobilenet-v3", "SE", mobilenet_v3),
        _entry("mnasnet", "depthwise", mnasnet),
        _entry("fcn", "segmentation", lambda: Fcn(pyramid=False)),
        _entry("deeplab", "segmentation", lambda: Fcn(pyramid=True)),
    )


def _entry(
    name: str, family: str, build: Callable[[], nn.Module], inputs: Callable[[int], Inputs] = _IMAGE, stuck: str = ""
) -> Entry:
    return Entry(name, family, Source.CLASSIC, build, inputs, stuck=stuck)
