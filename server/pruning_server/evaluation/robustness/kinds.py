"""What kind of input an array is, and what is known of it; what is not recognised is left alone, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.robustness.base import InputFacts, InputKind

CHANNEL_COUNTS = frozenset({1, 3, 4})
LEAST_SIDE = 4
# Grey images without an axis for channels look like float sequences; bytes of that size are images.
LEAST_GREY_SIDE = 8
LEAST_STEPS = 4
# An index of two values is a mask or a type, not a token.
LEAST_TOKENS = 3
_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True)
class Recognised:
    """What an input is, or the reason why it is left as it is."""

    facts: InputFacts | None
    reason: str | None = None


def recognise(array: np.ndarray, rows: np.ndarray, *, is_index: bool, channels_last: bool) -> Recognised:
    """Recognises one input by the shape, dtype and values of its samples.

    Images are [3 or 1 or 4 channels, height, width], channels first or last, or bytes [height, width]; tokens are
    indices [length]; tables [features]; float sequences [length, features], the longer axis being that of the steps.

    Args:
        array: [N, ...] as stored.
        rows: [n] of the samples that will be used; what is known of the set comes of these.
        is_index: whether the model takes the values as they are, as integers.
        channels_last: whether the images are stored as [height, width, channels] and turned for the model.
    """
    shape = tuple(array.shape[1:])
    if array.dtype.kind not in "iuf":
        return Recognised(None, f"its values are {array.dtype}")
    if is_index and array.dtype.kind in "iu":
        return _tokens(array, rows, shape)
    kind, axis = _numeric_kind(shape, array.dtype, channels_last=channels_last)
    if kind is None:
        described = "x".join(map(str, shape)) or "one number"
        return Recognised(None, f"{described} per sample is no image, table, or sequence that is known here")
    return _numeric(array, rows, kind, axis)


def _numeric_kind(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], *, channels_last: bool
) -> tuple[InputKind | None, int | None]:
    if len(shape) == 1 and shape[0] >= 2:
        return InputKind.TABLE, None
    if len(shape) == 2:
        if dtype == np.uint8 and min(shape) >= LEAST_GREY_SIDE:
            return InputKind.IMAGE, None
        return (InputKind.STEPS, int(shape[1] > shape[0])) if max(shape) >= LEAST_STEPS else (None, None)
    if len(shape) == 3:
        for axis in (2,) if channels_last else (0, 2):
            sides = [size for place, size in enumerate(shape) if place != axis]
            if shape[axis] in CHANNEL_COUNTS and min(sides) >= LEAST_SIDE:
                return InputKind.IMAGE, axis
    return None, None


def _tokens(array: np.ndarray, rows: np.ndarray, shape: tuple[int, ...]) -> Recognised:
    if len(shape) != 1 or shape[0] < 2:
        return Recognised(None, "indices are known here only as sequences, one axis per sample")
    values = np.asarray(array[rows])
    tokens, counts = np.unique(values, return_counts=True)
    if len(tokens) < LEAST_TOKENS:
        return Recognised(None, "it has two values only, as masks and types have")
    return Recognised(InputFacts(InputKind.TOKENS, filler=_filler(values, tokens[np.argmax(counts)])))


def _filler(values: np.ndarray, frequent: np.generic) -> np.ndarray:
    """[T]: the set's most frequent token, which is what sequences are padded with where they are.

    Where a position never has it, as in a table of categories, that position's own most frequent value: one that the
    model's embedding is known to take.
    """
    filler = np.full(values.shape[1], frequent, dtype=values.dtype)
    for place in np.flatnonzero(~(values == frequent).any(axis=0)):
        own, counts = np.unique(values[:, place], return_counts=True)
        filler[place] = own[np.argmax(counts)]
    return filler


def _numeric(array: np.ndarray, rows: np.ndarray, kind: InputKind, axis: int | None) -> Recognised:
    """Mean and spread per channel or feature, in float64, in blocks."""
    axes = _averaged_axes(kind, axis, array.ndim - 1)
    count, total, squares, low, high = 0, np.zeros(()), np.zeros(()), np.inf, -np.inf
    # Values around the first sample, so that squares do not swallow the spread of large numbers.
    origin = np.asarray(array[rows[:1]], np.float64).mean(axis=(0, *axes), keepdims=True)
    for block in _blocks(array, rows):
        if not np.isfinite(block).all():
            return Recognised(None, "some of its values are not finite")
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        centered = block - origin
        over = (0, *axes)
        count += int(np.prod([block.shape[place] for place in over]))
        total = total + centered.sum(axis=over, keepdims=True)
        squares = squares + np.square(centered).sum(axis=over, keepdims=True)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    if array.dtype == np.uint8:
        low, high = 0.0, 255.0
    return Recognised(InputFacts(kind, axis, low, high, (mean + origin)[0], std[0]))


def _averaged_axes(kind: InputKind, axis: int | None, axes: int) -> tuple[int, ...]:
    """Axes of [n, ...] over which a channel or feature is averaged, beside that of the samples."""
    if kind is InputKind.IMAGE:
        return tuple(place + 1 for place in range(axes) if place != axis)
    if kind is InputKind.STEPS:
        return ((axis or 0) + 1,)
    return ()


def _blocks(array: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    each = max(1, 8 * int(np.prod(array.shape[1:], dtype=np.int64)))
    size = max(1, _BLOCK_BYTES // each)
    for start in range(0, len(rows), size):
        yield np.asarray(array[rows[start : start + size]], np.float64)
