"""Folders and tables become containers, exactly, or a message says what to change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pruning_client import BadInputError, Static, StoredArtifact, Submission
from pruning_client.adapters import check_dataset_path, prepare_datasets


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., tuple[dict[str, np.ndarray], list[str]]]:
    """Converts one validation set and returns its arrays and the notes."""

    def call(source: Path, train: Path | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
        folder = tmp_path / f"converted{len(list(tmp_path.glob('converted*')))}"
        folder.mkdir()
        notes: list[str] = []
        submission = Submission(model=StoredArtifact("m"), validation=source, train=train, strategy=Static())
        prepared = prepare_datasets(submission, folder, notes.append)
        with np.load(str(prepared.validation), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, notes

    return call


def save_images(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """Writes `class/name.suffix` -> pixels."""
    for name, pixels in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Random pixels [H, W] or [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- Containers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors", "DATA.NPZ"])
def test_containers_pass_through_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"whatever the server says about it")
    submission = Submission(model=StoredArtifact("m"), validation=tmp_path / name, strategy=Static())
    assert prepare_datasets(submission, tmp_path / "unused", print).validation == tmp_path / name


@pytest.mark.parametrize("name", ["data.npy", "data.txt", "data", "data.pt", "data.zip", "data.h5"])
def test_other_files_are_refused_with_what_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"\.npz or \.safetensors.*DIR/<class>.*\.csv.*\.parquet"):
        check_dataset_path(tmp_path / name)


# --- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_images_are_stored_as_they_are(shape: tuple[int, ...], convert: Callable[..., Any], tmp_path: Path) -> None:
    names = ["dog/1.png", "cat/b.PNG", "cat/a.png", "bird/x.png"]
    folder = save_images(tmp_path / "set", {name: pixels(i, *shape) for i, name in enumerate(names)})
    (folder / "dog" / ".DS_Store").write_bytes(b"junk")
    arrays, notes = convert(folder)
    assert arrays["inputs"].dtype == np.uint8
    assert arrays["targets"].dtype == np.int64
    assert arrays["targets"].tolist() == [0, 1, 1, 2]
    order = [3, 2, 1, 0]  # bird/x, cat/a, cat/b, dog/1
    expected = np.stack([pixels(i, *shape) for i in order])
    expected = expected[:, None] if len(shape) == 2 else expected.transpose(0, 3, 1, 2)
    assert np.array_equal(arrays["inputs"], expected)
    assert any("bird=0, cat=1, dog=2" in note for note in notes)


def test_jpeg_palette_and_bilevel(convert: Callable[..., Any], tmp_path: Path) -> None:
    rgb = save_images(tmp_path / "rgb", {"a/1.jpg": pixels(0, 8, 8, 3), "a/2.jpeg": pixels(1, 8, 8, 3)})
    palette = Image.fromarray(pixels(2, 8, 8, 3)).quantize(4)
    palette.save(rgb / "a" / "3.png")
    arrays, _ = convert(rgb)
    assert arrays["inputs"].shape == (3, 3, 8, 8)
    assert np.array_equal(arrays["inputs"][2], np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    grey = save_images(tmp_path / "grey", {"a/1.png": pixels(0, 8, 8)})
    Image.fromarray(pixels(1, 8, 8) > 127).save(grey / "a" / "2.png")
    arrays, _ = convert(grey)
    assert set(np.unique(arrays["inputs"][1])) == {0, 255}


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "set", {"a/1.png": pixels(0, 4, 4), "b/2.png": pixels(1, 4, 4)})
    submission = Submission(model=StoredArtifact("m"), validation=folder, strategy=Static())
    contents = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        prepared = prepare_datasets(submission, tmp_path / name, lambda _note: None)
        contents.add(Path(str(prepared.validation)).read_bytes())
    assert len(contents) == 1


def test_class_numbers_come_from_the_training_set(convert: Callable[..., Any], tmp_path: Path) -> None:
    train = save_images(tmp_path / "train", {f"{c}/1.png": pixels(0, 4, 4) for c in ("ant", "bee", "cow")})
    held = save_images(tmp_path / "held", {f"{c}/1.png": pixels(1, 4, 4) for c in ("ant", "cow")})
    arrays, _ = convert(held, train)
    assert arrays["targets"].tolist() == [0, 2]
    other = save_images(tmp_path / "other", {"dog/1.png": pixels(1, 4, 4)})
    with pytest.raises(BadInputError, match=r"'dog'.*ant, bee, cow"):
        convert(other, train)


def test_numbers_as_class_names_are_warned_about(convert: Callable[..., Any], tmp_path: Path) -> None:
    folder = save_images(tmp_path / "set", {f"{c}/1.png": pixels(0, 4, 4) for c in ("2", "10", "1")})
    _, notes = convert(folder)
    assert any("1=0, 10=1, 2=2 (sorted as text" in note for note in notes)


def bad_image_folders() -> dict[str, tuple[Callable[[Path], object], str]]:
    """Name -> (makes it, what the message says)."""

    def with_alpha(folder: Path) -> None:
        save_images(folder, {"a/1.png": pixels(0, 4, 4, 4)})

    def deep(folder: Path) -> None:
        save_images(folder, {"a/b/1.png": pixels(0, 4, 4)})

    def sixteen_bit(folder: Path) -> None:
        save_images(folder, {"a/1.png": np.zeros((4, 4), dtype=np.uint16)})

    def broken(folder: Path) -> None:
        save_images(folder, {"a/1.png": pixels(0, 64, 64, 3)})
        data = (folder / "a" / "1.png").read_bytes()
        (folder / "a" / "2.png").write_bytes(data[: len(data) // 2])

    def not_an_image(folder: Path) -> None:
        save_images(folder, {"a/1.png": pixels(0, 4, 4)})
        (folder / "a" / "2.png").write_bytes(b"text")

    def empty_class(folder: Path) -> None:
        save_images(folder, {"a/1.png": pixels(0, 4, 4)})
        (folder / "b").mkdir()

    def other_file(folder: Path) -> None:
        save_images(folder, {"a/1.png": pixels(0, 4, 4)})
        (folder / "a" / "notes.txt").write_text("x")

    return {
        "other size": (lambda f: save_images(f, {"a/1.png": pixels(0, 4, 4), "b/2.png": pixels(0, 4, 5)}),
                       r"one size: .*2\.png is 5x4, .*1\.png is 4x4"),
        "turned": (lambda f: save_images(f, {"a/1.png": pixels(0, 4, 6), "a/2.png": pixels(0, 6, 4)}), "one size"),
        "grey and colour": (lambda f: save_images(f, {"a/1.png": pixels(0, 4, 4), "b/2.png": pixels(0, 4, 4, 3)}),
                            "all images must be grey or all RGB"),
        "alpha": (with_alpha, "transparency"),
        "16 bits": (sixteen_bit, "8-bit"),
        "broken": (broken, r"cannot read the image .*2\.png"),
        "not an image": (not_an_image, r"cannot read the image .*2\.png"),
        "no classes": (lambda f: save_images(f, {"1.png": pixels(0, 4, 4)}), "not in the folder of a class"),
        "deep": (deep, "not a .png or .jpg"),
        "empty": (lambda f: f.mkdir(), "it is empty"),
        "empty class": (empty_class, "class b has no image"),
        "other file": (other_file, r"notes\.txt is not a \.png or \.jpg"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_image_folders())
def test_bad_image_folders(name: str, convert: Callable[..., Any], tmp_path: Path) -> None:
    make, message = bad_image_folders()[name]
    make(tmp_path / "set")
    with pytest.raises(BadInputError, match=message):
        convert(tmp_path / "set")


# --- Tables -----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Writes the text as it is."""
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_with_integer_targets(convert: Callable[..., Any], tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", 'b,target,"a, quoted"\n1,0,2.5\n-3e2, 1 ,.5\r\n\n')
    arrays, notes = convert(path)
    assert arrays["inputs"].dtype == np.float32
    assert arrays["inputs"].tolist() == [[1.0, 2.5], [-300.0, 0.5]]
    assert (arrays["targets"].dtype, arrays["targets"].tolist()) == (np.int64, [0, 1])
    assert set(arrays) == {"inputs", "targets"}
    assert any("b, a, quoted" in note for note in notes)


@pytest.mark.parametrize(
    ("cells", "expected", "dtype"),
    [
        (["0.5", "1", "2"], [0.5, 1.0, 2.0], np.float32),
        (["dog", "cat", "dog"], [1, 0, 1], np.int64),
        (["1", "2", "x"], [0, 1, 2], np.int64),
        (["-1", "+2", "3"], [-1, 2, 3], np.int64),
        (["1_0", "2", "3"], [0, 1, 2], np.int64),
    ],
)
def test_csv_targets(
    cells: list[str], expected: list[float], dtype: type, convert: Callable[..., Any], tmp_path: Path
) -> None:
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    arrays, _ = convert(write_csv(tmp_path / "t.csv", f"x,label\n{rows}", "utf-8-sig"))
    assert (arrays["targets"].dtype, arrays["targets"].tolist()) == (dtype, expected)


def test_a_table_without_targets_says_so(convert: Callable[..., Any], tmp_path: Path) -> None:
    arrays, notes = convert(write_csv(tmp_path / "t.csv", "x,y\n1,2\n"))
    assert set(arrays) == {"inputs"}
    assert any("no targets" in note for note in notes)


def test_split_and_groups_columns(convert: Callable[..., Any], tmp_path: Path) -> None:
    arrays, _ = convert(write_csv(tmp_path / "t.csv", "x,split,groups,target\n1,0,bob,1\n2,2,al,0\n3,1,bob,1\n"))
    assert (arrays["split"].dtype, arrays["split"].tolist()) == (np.uint8, [0, 2, 1])
    assert arrays["groups"].tolist() == [1, 0, 1]
    assert arrays["inputs"].shape == (3, 1)


def test_text_classes_of_two_tables_agree(convert: Callable[..., Any], tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", "x,target\n1,a\n2,b\n3,c\n")
    arrays, _ = convert(write_csv(tmp_path / "t.csv", "x,target\n1,c\n2,b\n"), train)
    assert arrays["targets"].tolist() == [2, 1]
    with pytest.raises(BadInputError, match="'d'"):
        convert(write_csv(tmp_path / "u.csv", "x,target\n1,d\n"), train)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("x,target\n", "no rows"),
        ("target\n1\n", "no column is left"),
        ("x,x\n1,2\n", "two columns are named 'x'"),
        ("x,,y\n1,2,3\n", "no name"),
        ("x,target,label\n1,2,3\n", "both `target` and `label`"),
        ("x;y\n1;2\n", "separated by commas"),
        ("x\ty\n1\t2\n", "separated by commas"),
        ("x,y\n1\n", "row 2: 1 cells"),
        ("x,y\n1,2,3\n", "row 2: 3 cells"),
        ("x,y\n1,2\n3,four\n", "row 3: column 'y' holds 'four'"),
        ("x,y\n1,\n", "row 2: column 'y' is empty"),
        ("x,target\n1,\n", "row 2: column 'target' is empty"),
        ("x,y\n1,2\nnan,2\n", "row 3, column 'x' is not a finite"),
        ("x,y\n1,1e300\n", "row 2, column 'y' is not a finite"),
        ("x,y\n1_000,1\n", "'1_000'"),
        ("x,target\n1,nan\n", "target is not a finite"),
        ("x,target\n1,99999999999999999999\n", "64 bits"),
        ("x,split\n1,7\n", "'split' must hold"),
        ("x,split\n1,fit\n", "'split' must hold"),
        ('x,y\n"1,2\n', "not CSV"),
    ],
)
def test_bad_csv(content: str, message: str, convert: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        convert(write_csv(tmp_path / "t.csv", content))


def test_csv_in_another_encoding(convert: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="UTF-8"):
        convert(write_csv(tmp_path / "t.csv", "größe\n1\n", "latin-1"))


def test_parquet(convert: Callable[..., Any], tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([1, 2, 3], pa.int8()),
            "target": pa.array(["x", "y", "x"]).dictionary_encode(),
            "b": pa.array([0.5, 1.5, 2.5], pa.float64()),
            "c": pa.array([True, False, True]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    arrays, _ = convert(tmp_path / "t.parquet")
    assert arrays["inputs"].tolist() == [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]]
    assert arrays["inputs"].dtype == np.float32
    assert arrays["targets"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": pa.array([1, None])}, "1 empty values"),
        ({"a": pa.array(["x", "y"])}, "holds text"),
        ({"a": pa.array([[1], [2]])}, "of type list"),
        ({"a": pa.array([1.0, float("inf")])}, "row 2, column 'a'"),
        ({"a": pa.array([1.0, 1e300])}, "row 2, column 'a'"),
        ({"target": pa.array([1, 2])}, "no column is left"),
        ({"a": pa.array([1]), "target": pa.array([2**63], pa.uint64())}, "63 bits"),
        ({"a": pa.array([], pa.float32())}, "no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_parquet(columns: dict[str, Any], message: str, convert: Callable[..., Any], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(BadInputError, match=message):
        convert(tmp_path / "t.parquet")


def test_a_parquet_file_that_is_none(convert: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(BadInputError, match="not a readable Parquet file"):
        convert(tmp_path / "t.parquet")


@pytest.mark.parametrize(("module", "extra"), [("PIL", "images"), ("pyarrow", "parquet")])
def test_missing_extras_are_named(
    module: str, extra: str, convert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path / "set", {"a/1.png": pixels(0, 4, 4)})
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "t.parquet")
    for name in [m for m in sys.modules if m == module or m.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    source = tmp_path / ("set" if extra == "images" else "t.parquet")
    with pytest.raises(BadInputError, match=rf"pip install 'pruning-service\[{extra}\]'"):
        convert(source)


def test_converted_data_reaches_the_server_under_its_own_name(
    prune: Callable[..., Any], server: Any, inputs: Any, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "flowers", {f"{c}/1.png": pixels(0, 4, 4) for c in ("rose", "tulip")})
    base = ["submit", inputs.model, "--validation", folder, "--strategy", "static", "--sparsity", 0.5, "--json"]
    ended = prune(*base)
    assert ended.code == 0
    assert "rose=0, tulip=1" in ended.err
    assert {a.display_name for a in server.artifacts.artifacts.values()} >= {"flowers.npz", "model.pt"}
    assert prune(*base, "--layout", "nhwc").code == 2
