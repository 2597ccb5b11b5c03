"""Classic convolutional nets that neither transformers nor monai have, in the layout that everybody's code gives them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_bn(channels: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution that keeps the size up to its stride, and batch norm."""
    return [nn.Conv2d(channels, made, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(made)]


class Bottleneck(nn.Module):
    """He et al. 2016 (arXiv 1512.03385), stride in the 3x3; groups as in ResNeXt (arXiv 1611.05431)."""

    def __init__(self, channels: int, planes: int, stride: int = 1, groups: int = 1, width: int = 64) -> None:
        super().__init__()
        inner, made = planes * width // 64 * groups, planes * 4
        self.conv1, self.bn1 = conv_bn(channels, inner, 1)
        self.conv2, self.bn2 = conv_bn(inner, inner, 3, stride, groups)
        self.conv3, self.bn3 = conv_bn(inner, made, 1)
        self.relu = nn.ReLU(inplace=True)
        changes = stride != 1 or channels != made
        self.downsample = nn.Sequential(*conv_bn(channels, made, 1, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Four stages of bottlenecks after a 7x7 stem."""

    def __init__(self, layers: tuple[int, ...], classes: int, groups: int = 1, width: int = 64, base: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, stages = base, []
        for number, count in enumerate(layers):
            planes = base << number
            blocks = []
            for block in range(count):
                stride = 2 if number and not block else 1
                blocks.append(Bottleneck(channels, planes, stride, groups, width))
                channels = planes * 4
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ShuffleUnit(nn.Module):
    """Ma et al. 2018, ShuffleNet V2 (arXiv 1807.11164)."""

    def __init__(self, channels: int, made: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = made // 2
        before = channels if stride > 1 else half
        self.branch1 = (
            nn.Sequential(*conv_bn(channels, channels, 3, stride, channels), *conv_bn(channels, half, 1), nn.ReLU())
            if stride > 1
            else nn.Sequential()
        )
        self.branch2 = nn.Sequential(
            *conv_bn(before, half, 1),
            nn.ReLU(),
            *conv_bn(half, half, 3, stride, half),
            *conv_bn(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the shuffled halves."""
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            out = torch.cat((left, self.branch2(right)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        n, c, h, w = out.size()
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNetV2(nn.Module):
    """Two stages of units."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        first, *stages, last = widths
        self.stem = nn.Sequential(*conv_bn(3, first, 3, 2), nn.ReLU())
        units, channels = [], first
        for width in stages:
            units += [ShuffleUnit(channels, width, 2), ShuffleUnit(width, width, 1), ShuffleUnit(width, width, 1)]
            channels = width
        self.units = nn.Sequential(*units)
        self.last = nn.Sequential(*conv_bn(channels, last, 1), nn.ReLU())
        self.fc = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        return self.fc(self.last(self.units(self.stem(x))).mean([2, 3]))


class Inception(nn.Module):
    """Szegedy et al. 2015, GoogLeNet (arXiv 1409.4842), with batch norm."""

    def __init__(self, channels: int, ones: int, threes: tuple[int, int], fives: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*conv_bn(channels, ones, 1), nn.ReLU())
        self.branch2 = _two(channels, *threes)
        self.branch3 = _two(channels, *fives)
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), *conv_bn(channels, pool, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Returns the four branches side by side."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


def _two(channels: int, middle: int, made: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(channels, middle, 1), nn.ReLU(), *conv_bn(middle, made, 3), nn.ReLU())


class GoogLeNet(nn.Module):
    """Three inception blocks, and a head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 32, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.first = Inception(32, 16, (24, 32), (4, 8), 8)
        self.second = Inception(64, 32, (32, 48), (8, 24), 16)
        self.third = Inception(120, 48, (24, 52), (4, 12), 16)
        self.auxiliary = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64 * 4, 32), nn.ReLU(), nn.Linear(32, 10)
        )
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits; in training, with those of the auxiliary head added."""
        x = self.first(self.stem(x))
        extra = self.auxiliary(x) if self.training else None
        x = functional.max_pool2d(self.second(x), 2)
        y = self.fc(self.dropout(torch.flatten(functional.adaptive_avg_pool2d(self.third(x), 1), 1)))
        return y if extra is None else y + 0.3 * extra


class Fire(nn.Module):
    """Iandola et al. 2016, SqueezeNet (arXiv 1602.07360)."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns both expansions side by side."""
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], 1)


def squeezenet() -> nn.Module:
    """Fire modules; the classifier is a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(32, 8, 32), Fire(64, 8, 32),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(64, 16, 48), Fire(96, 16, 64), nn.Dropout(0.5), nn.Conv2d(128, 10, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def vgg(*, batch_norm: bool) -> nn.Module:
    """Simonyan and Zisserman 2015 (arXiv 1409.1556), eight convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 0, 32, 0, 64, 64, 0, 96, 96, 0):
        if not width:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
        channels = width
    head = [nn.Linear(96 * 4, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, 128), nn.ReLU(True), nn.Linear(128, 10)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), *head)


def alexnet() -> nn.Module:
    """Krizhevsky 2014 (arXiv 1404.5997)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(96, 64, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(),
        nn.Dropout(), nn.Linear(64 * 9, 128), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(128, 10),
    )  # fmt: skip


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018 (arXiv 1709.01507), with the hard sigmoid of MobileNetV3."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the gated input."""
        return functional.hardsigmoid(self.fc2(functional.relu(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    """Howard et al. 2019, MobileNetV3 (arXiv 1905.02244); without gate and with ReLU6 it is MNASNet's block."""

    def __init__(self, channels: int, inner: int, made: int, stride: int, *, gate: bool, hard: bool) -> None:
        super().__init__()
        self.residual = stride == 1 and channels == made
        act = nn.Hardswish if hard else nn.ReLU6
        self.block = nn.Sequential(
            *conv_bn(channels, inner, 1),
            act(),
            *conv_bn(inner, inner, 5 if gate else 3, stride, inner),
            act(),
            SqueezeExcitation(inner, inner // 4) if gate else nn.Identity(),
            *conv_bn(inner, made, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = self.block(x)
        return y + x if self.residual else y


def mobilenet_v3() -> nn.Module:
    """Six blocks, half of them gated."""
    return _inverted(
        [
            (16, 32, 16, 1, False),
            (16, 48, 24, 2, False),
            (24, 72, 24, 1, False),
            (24, 96, 40, 2, True),
            (40, 120, 40, 1, True),
            (40, 120, 48, 1, True),
        ],
        hard=True,
    )


def mnasnet() -> nn.Module:
    """Tan et al. 2019 (arXiv 1807.11626): blocks without gates."""
    return _inverted(
        [
            (16, 48, 24, 2, False),
            (24, 72, 24, 1, False),
            (24, 72, 40, 2, False),
            (40, 120, 40, 1, False),
            (40, 120, 48, 1, False),
        ],
        hard=False,
    )


def _inverted(blocks: list[tuple[int, int, int, int, bool]], *, hard: bool) -> nn.Module:
    made = [InvertedResidual(c, inner, out, stride, gate=gate, hard=hard) for c, inner, out, stride, gate in blocks]
    act = nn.Hardswish if hard else nn.ReLU6
    tail = [
        *conv_bn(48, 128, 1),
        act(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 64),
        act(),
        nn.Linear(64, 10),
    ]
    return nn.Sequential(*conv_bn(3, 16, 3, 2), act(), *made, *tail)


class Fcn(nn.Module):
    """Long et al. 2015 (arXiv 1411.4038) on a dilated bottleneck net, with the pooled pyramid of DeepLabV3 (arXiv 1706.05587)."""

    def __init__(self, *, pyramid: bool) -> None:
        super().__init__()
        self.backbone = ResNet((1, 1, 1, 1), 1, base=16)
        self.branches = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(512, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())]
            + [
                nn.Sequential(
                    nn.Conv2d(512, 32, 3, padding=rate, dilation=rate, bias=False), nn.BatchNorm2d(32), nn.ReLU()
                )
                for rate in ((2, 4) if pyramid else ())
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(512, 32, 1, bias=False), nn.ReLU())
        width = 32 * (len(self.branches) + 1)
        self.head = nn.Sequential(*conv_bn(width, 32, 3), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(32, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, h, w] in, [N, 5, h, w] out."""
        size = x.shape[-2:]
        net = self.backbone
        y = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        y = net.layer4(net.layer3(net.layer2(net.layer1(y))))
        pooled = functional.interpolate(self.pool(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        found = [pooled]
        for branch in self.branches:
            found.append(branch(y))  # noqa: PERF401 - a list comprehension over modules does not script
        return functional.interpolate(self.head(torch.cat(found, 1)), size=size, mode="bilinear", align_corners=False)
