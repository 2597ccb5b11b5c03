"""What an entry of the zoo is, and the seeded inputs that entries are run on."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = tuple[object, ...]


class MissingPartError(RuntimeError):
    """A package or file that this machine does not have; the message says which."""


class Form(enum.StrEnum):
    """How an archive is made from a module."""

    SCRIPT = "script"
    TRACE = "trace"
    FILE = "file"


class Source(enum.StrEnum):
    """Where the code comes from."""

    TRANSFORMERS = "transformers"
    MONAI = "monai"
    TORCH = "torch"
    CLASSIC = "classic"
    DATA = "data"


SCRIPT, TRACE, BOTH = (Form.SCRIPT,), (Form.TRACE,), (Form.SCRIPT, Form.TRACE)


@dataclass(frozen=True)
class Entry:
    """One architecture; nothing is imported or built before `build` is called.

    Attributes:
        name: unique.
        family: kind of architecture, for the table.
        source: where its code comes from.
        build: makes the module; for `Form.FILE`, loads it.
        inputs: the arguments of `forward` by batch size; the same ones each time.
        forms: what is made of it: `SCRIPT` where it scripts.
        batches: sizes that it is looked at with; a trace is made with the first one.
        stuck: why it cannot get to half of its MACs, decided from its architecture; "" where it can.
        stuck_forms: the forms that `stuck` is true of.
    """

    name: str
    family: str
    source: Source
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    forms: tuple[Form, ...] = BOTH
    batches: tuple[int, ...] = (2, 3)
    stuck: str = ""
    stuck_forms: tuple[Form, ...] = (Form.SCRIPT, Form.TRACE, Form.FILE)

    def why_stuck(self, form: Form) -> str:
        """The reason where this form is expected to stay above half of its MACs, else ""."""
        return self.stuck if form in self.stuck_forms else ""


def floats(*shape: int) -> Callable[[int], Inputs]:
    """One tensor [batch, *shape] of uniform floats in -1..1."""

    def inputs(batch: int) -> Inputs:
        return (uniform(batch, *shape),)

    return inputs


def tokens(length: int, vocabulary: int = 90) -> Callable[[int], Inputs]:
    """One tensor [batch, length] of token numbers, none of them a special one."""

    def inputs(batch: int) -> Inputs:
        return (numbers(batch, length, below=vocabulary),)

    return inputs


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Uniform floats in -1..1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def numbers(*shape: int, below: int, seed: int = 0) -> Tensor:
    """Integers from 5 to `below` - 1: small ones are often special tokens."""
    return torch.randint(5, below, shape, generator=torch.Generator().manual_seed(seed))
