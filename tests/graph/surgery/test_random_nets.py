"""Nets drawn at random from the covered ops, channels drawn at random: shrunk equals masked every time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo
from pruning_server.graph.structure import analyse


class Wide(nn.Module):
    """A convolution with norm and activation to `number` * 4 channels."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = number * 4
        self.conv = nn.Conv2d(width, self.made, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.made)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardswish(self.norm(self.conv(x)))


class Sum(nn.Module):
    """A residual block, added in place."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = width
        self.up = nn.Conv2d(width, number * 2, 1)
        self.down = nn.Conv2d(number * 2, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(x)))
        y += x
        return y


class Dense(nn.Module):
    """Joins its input with new channels."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = width + number * 2
        self.conv = nn.Conv2d(width, number * 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), x], 1)


class Gate(nn.Module):
    """Squeeze and excitation, with sizes read off the input."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = width
        self.down = nn.Linear(width, number)
        self.up = nn.Linear(number, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        y = torch.sigmoid(self.up(torch.relu(self.down(x.mean([2, 3])))))
        return x * y.view(n, c, 1, 1)


class Depthwise(nn.Module):
    """Depthwise, then pointwise; twice the channels on the way."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = number * 4
        self.deep = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(2 * width, self.made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(functional.silu(self.deep(x)))


class Grouped(nn.Module):
    """A grouped convolution between two pointwise ones, and a norm by groups."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = number * 4
        self.inward = nn.Conv2d(width, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 8)
        self.outward = nn.Conv2d(8, self.made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(torch.relu(self.norm(self.grouped(self.inward(x)))))


class Shuffle(nn.Module):
    """Two halves, one of them through a convolution, joined and shuffled."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = number * 4
        self.inward = nn.Conv2d(width, self.made, 1)
        self.conv = nn.Conv2d(self.made // 2, self.made // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.inward(x).chunk(2, 1)
        y = torch.cat([one, torch.relu(self.conv(other))], 1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Padded(nn.Module):
    """The shortcut without weights: every second pixel, and zeros for the new channels."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = width + 2 * number
        self.conv = nn.Conv2d(width, self.made, 3, padding=1)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) + functional.pad(x, [0, 0, 0, 0, self.number, self.number])


class Pixels(nn.Module):
    """Four channels become two by two pixels, which are pooled again."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = number
        self.conv = nn.Conv2d(width, 4 * number, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(functional.pixel_shuffle(self.conv(x), 2), 2)


class Attend(nn.Module):
    """Attention over pixels: heads of three dimensions, added to the input."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.made = width
        self.heads = number + 1
        self.qkv = nn.Linear(width, 3 * self.heads * 3)
        self.out = nn.Linear(self.heads * 3, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(n, h * w, 3, self.heads, 3).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1) * 3**-0.5, -1) @ v
        t = t + self.out(y.transpose(1, 2).reshape(n, h * w, self.heads * 3))
        return t.transpose(1, 2).reshape(n, c, h, w)


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    kind.__name__: kind
    for kind in (Wide, Sum, Dense, Gate, Depthwise, Grouped, Shuffle, Padded, Pixels, Attend)
}  # fmt: skip


class Net(nn.Module):
    """[N, 3, 4, 4] in, [N, 4] out; the tail flattens, pools or runs over rows of pixels."""

    def __init__(self, plan: list[tuple[str, int]], tail: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for kind, number in plan:
            layer = BLOCKS[kind](width, number)
            layers.append(layer)
            width = int(layer.made)
        self.body = nn.Sequential(*layers)
        self.tail = tail
        self.recurrent = nn.GRU(width, 5, batch_first=True)
        self.hidden = nn.Linear({"flat": width * 16, "pool": width, "rows": 5}[tail], 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.tail == "flat":
            y = torch.flatten(x, 1)
        elif self.tail == "pool":
            y = x.mean([2, 3])
        else:
            y = self.recurrent(x.mean(2).transpose(1, 2))[0][:, -1]
        return self.head(functional.leaky_relu(self.hidden(y)))


PLANS = st.lists(st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(
    plan=PLANS,
    tail=st.sampled_from(["flat", "pool", "rows"]),
    form=st.sampled_from(["scripted", "traced", "frozen"]),
    data=st.data(),
)
def test_shrunk_equals_masked(plan: list[tuple[str, int]], tail: str, form: str, data: st.DataObject) -> None:
    net = Net(plan, tail)
    cutting.randomize(net, seed=len(plan))
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    archive = zoo.traced(net, x[:2]) if form == "traced" else getattr(zoo, form)(net.eval())
    structure = analyse(zoo.reload(archive), {"forward": [(x[:2],), (x[:3],)]}, batch_size=2)
    assert not structure.failed_rules
    removal = {}
    for number, group in enumerate(structure.groups):
        channels = st.lists(st.integers(0, group.size - 1), unique=True, max_size=group.size - 1)
        removal[number] = data.draw(channels, label=f"group {number}")
    smaller, cut = shrinking.shrunk(archive, structure, removal)
    shrinking.assert_same(smaller, shrinking.mask(archive, cut), "forward", (x,))
    # What was promised is what is there.
    counted = analyse(zoo.reload(smaller), {"forward": [(x[:2],)]}, batch_size=2).cost({})
    assert counted == structure.cost(removal)
