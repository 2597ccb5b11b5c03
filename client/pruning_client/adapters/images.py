"""Image folders, `DIR/<class>/*.png|jpg`, as uint8 inputs [N, C, H, W] and int64 targets [N]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning_client.adapters.classes import describe_classes, number_classes
from pruning_client.adapters.container import ContainerWriter
from pruning_client.errors import BadInputError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})
# Lossless conversions only: a bilevel image is a grey one, a palette is RGB.
_CHANNELS_BY_MODE = {"L": 1, "1": 1, "RGB": 3, "P": 3}
_NAME_BY_CHANNELS = {1: "grey", 3: "RGB"}


def convert_images(
    folder: Path, destination: Path, classes: tuple[str, ...] | None, note: Callable[[str], None]
) -> tuple[str, ...]:
    """Writes the folder's images as a container and returns the class names in the order of their numbers.

    Pixels are stored as they are, without resizing, cropping or rotating.

    Raises:
        BadInputError: the folder has another shape, an image cannot be read, or images differ in size or colour.
    """
    _require_pillow()
    files_by_class = _list_images(folder)
    order = number_classes(files_by_class, classes, folder)
    files = [(path, order.index(name)) for name, paths in files_by_class.items() for path in paths]
    channels, height, width = _common_shape([path for path, _ in files])
    note(f"{folder}: {len(files)} images, {_NAME_BY_CHANNELS[channels]}, {width}x{height}")
    note(describe_classes(order))
    with ContainerWriter(destination) as container:
        container.add(
            "inputs", "|u1", (len(files), channels, height, width), _pixels([path for path, _ in files], channels)
        )
        container.add("targets", "<i8", (len(files),), [np.array([label for _, label in files], dtype=np.int64)])
    return order


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise BadInputError(
            "reading a folder of images needs Pillow: pip install 'pruning-service[images]'", reason="EXTRA_MISSING"
        ) from None


def _list_images(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    expected = f"a folder of images must be DIR/<class>/*.png|jpg ({folder})"
    found: dict[str, list[Path]] = {}
    for child in _visible(folder):
        if not child.is_dir():
            raise BadInputError(f"{expected}: {child.name} is not in the folder of a class", reason="DATASET_KEYS")
        for file in _visible(child):
            if not file.is_file() or file.suffix.lower() not in _SUFFIXES:
                raise BadInputError(f"{expected}: {file} is not a .png or .jpg file", reason="DATASET_UNREADABLE")
            found.setdefault(child.name, []).append(file)
        if child.name not in found:
            raise BadInputError(f"{expected}: class {child.name} has no image", reason="DATASET_EMPTY")
    if not found:
        raise BadInputError(f"{expected}: it is empty", reason="DATASET_EMPTY")
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise BadInputError(f"cannot read {folder}: {error.strerror}", reason="FILE_UNREADABLE") from error
    return [c for c in children if not c.name.startswith(".") and c.name.lower() not in _IGNORED]


def _common_shape(paths: list[Path]) -> tuple[int, int, int]:
    """Channels, height and width, which all images must share; reads headers only."""
    first: tuple[int, int, int] | None = None
    for path in paths:
        image = _read(path, lambda opened: (opened.mode, opened.size, "transparency" in opened.info))
        mode, (width, height), is_transparent = image
        if mode not in _CHANNELS_BY_MODE or is_transparent:
            detail = "has transparency" if is_transparent or "A" in mode else f"is stored as {mode}"
            raise BadInputError(f"{path} {detail}; save it as 8-bit grey or RGB", reason="DATASET_DTYPE")
        shape = (_CHANNELS_BY_MODE[mode], height, width)
        first = first or shape
        if shape[1:] != first[1:]:
            raise BadInputError(
                f"all images must have one size: {path} is {width}x{height}, {paths[0]} is {first[2]}x{first[1]}",
                reason="DATASET_LENGTHS_DIFFER",
            )
        if shape[0] != first[0]:
            raise BadInputError(
                f"all images must be grey or all RGB: {path} is {_NAME_BY_CHANNELS[shape[0]]}, "
                f"{paths[0]} is {_NAME_BY_CHANNELS[first[0]]}",
                reason="DATASET_DTYPE",
            )
    if first is None:
        raise BadInputError("no images", reason="DATASET_EMPTY")
    return first


def _pixels(paths: list[Path], channels: int) -> Iterator[NDArray[Any]]:
    for path in paths:
        pixels = _read(path, lambda image: np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8))
        yield pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _read(path: Path, use: Callable[[Any], Any]) -> Any:
    from PIL import Image  # noqa: PLC0415 - an extra

    try:
        with Image.open(path) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInputError(f"cannot read the image {path}: {error}", reason="DATASET_UNREADABLE") from error
