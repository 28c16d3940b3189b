"""Data sets: files, folders, arrays and objects."""
# ruff: noqa: E501  # a case a line

import gzip
from pathlib import Path

import numpy as np
import pandas
import torch
from torch.utils.data import TensorDataset

import fastgen
from tests.bad_input import files
from tests.bad_input.judge import Case, bad

SOURCE = "source|images|values"
IMAGES = np.zeros((4, 8, 8), np.uint8)
ROWS = np.zeros((4, 3), np.float32)
LABELS = np.arange(4)
FRAME = pandas.DataFrame(
    {
        "number": np.arange(40) / 7,
        "day": pandas.to_datetime("2024-01-01") + pandas.to_timedelta(np.arange(40), unit="D"),
        "absent": ["a", None] * 20,
        "few": ["a", "b"] * 20,
    }
)


def opened(source, **options):
    """What a user does with data: opens it, and reads a batch."""
    data = fastgen.open_dataset(source, **options)
    next(data.batches(2))


def file(argument, name, make, **options):
    """The case of a file that make(path) makes."""
    return Case(f"{name} {make.__name__ if hasattr(make, '__name__') else ''}", argument, lambda folder: opened(make(folder / name), **options))


def table(argument, content, **options):
    """The case of a .csv."""
    return Case(f"csv {content[:40]!r} {options or ''}", argument, lambda folder: opened(files.text(folder / "t.csv", content), **options))


def folder_of(*names, content=None):
    def make(folder: Path) -> Path:
        folder.mkdir()
        for name in names:
            if content is None:
                files.picture(folder / name)
            else:
                files.text(folder / name, content)
        return folder

    return make


def loop(folder):
    folder.mkdir()
    (folder / "again").symlink_to(folder)
    return folder


def batches(**options):
    next(fastgen.open_dataset(IMAGES).batches(**({"batch_size": 2} | options)))


CASES = [
    *(bad("source", opened, source) for source in (None, 7, "mnst", "nowhere/at/all", "nowhere.npz", "", {}, {"images": IMAGES}, object(), 7.5)),
    *(bad("split", opened, IMAGES, split=split) for split in ("val", None, 3, "")),
    bad("split", opened, IMAGES, split="test"),
    *(bad("size", opened, IMAGES, size=size) for size in (0, -1, 1.5, "8", (8, 8), 10**9)),
    *(bad("channels", opened, IMAGES, channels=channels) for channels in (0, 2, "1", -1, 1.5)),
    *(bad("kind", opened, IMAGES, kind=kind) for kind in ("rows", None, 1, ["images"])),
    *(bad("max_broken", opened, IMAGES, max_broken=most) for most in (-1, 1.5, "all", None)),
    *(bad("resident", opened, IMAGES, resident=resident) for resident in ("yes", None, 2)),
    *(bad("batch_size", batches, batch_size=size) for size in (0, -1, 1.5, "2", None)),
    *(bad("seed", batches, seed=seed) for seed in (-1, 0.5, "0", None)),
    *(bad("epochs", batches, epochs=epochs) for epochs in (0, -1, 1.5, "all")),
    *(bad("shuffle", batches, shuffle=shuffle) for shuffle in ("no", None)),
    *(bad("start", batches, start=start) for start in (-1, 0.5)),
    *(bad("workers", batches, workers=workers) for workers in (-1, 1.5)),
    # Arrays.
    bad(SOURCE, opened, np.zeros((0, 8, 8), np.uint8)),
    bad(SOURCE, opened, np.zeros((4, 0, 8), np.uint8)),
    bad(SOURCE, opened, np.zeros((4, 5, 6, 7, 8), np.uint8)),
    bad(SOURCE, opened, np.zeros(4, np.uint8)),
    bad(SOURCE, opened, np.uint8(3)),
    bad(SOURCE, opened, np.zeros((4, 8, 8), np.int64)),
    bad(SOURCE, opened, np.zeros((4, 8, 8), bool)),
    bad(SOURCE, opened, np.zeros((4, 8, 8), np.complex64)),
    bad(SOURCE, opened, np.full((4, 8, 8), 255.0, np.float32)),
    bad(SOURCE, opened, np.full((4, 8, 8), np.nan, np.float32)),
    bad(SOURCE, opened, np.full((4, 8, 8), -1.0, np.float32)),
    bad(SOURCE, opened, np.array([["a"] * 8] * 4)),
    bad(SOURCE, opened, np.array([[None] * 8] * 4)),
    bad(SOURCE, opened, np.full((4, 3), np.nan)),
    bad(SOURCE, opened, np.full((4, 3), np.inf)),
    bad(SOURCE, opened, np.full((4, 3), 1e300)),
    bad(SOURCE, opened, np.zeros((0, 3))),
    bad(SOURCE, opened, np.zeros((4, 0))),
    bad("source", opened, (IMAGES, LABELS, LABELS)),
    bad("source", opened, ()),
    bad("source", opened, TensorDataset(torch.zeros(4, 8, 8), torch.zeros(4), torch.zeros(4))),
    *(
        bad("labels", opened, (IMAGES, labels))
        for labels in (
            LABELS[:3], LABELS * 0.5, LABELS - 1, np.array(list("abcd")), np.array([None] * 4), LABELS * 10**9,
            np.array([20240101] * 4), np.full(4, np.nan), np.array([0, 1, 2, 2**62]), "abcd", 3, [0, 1, 2, "x"],
        )
    ),
    bad("size", opened, ROWS, size=8),
    bad("channels", opened, ROWS, channels=1),
    # Files.
    file("source", "text.npy", lambda path: files.text(path, "hello")),
    file("source", "empty.npy", lambda path: files.text(path, "")),
    file("source", "cut.npy", lambda path: files.cut(files.saved(path, IMAGES))),
    file("source", "objects.npy", lambda path: files.text(path, files.npy_bytes(np.array([{}, []], dtype=object)))),
    file("source", "huge.npy", lambda path: files.header(path, "(1000000000000000,)")),
    file("source", "huge3.npy", lambda path: files.header(path, "(1000000000, 1000, 1000)")),
    file("source", "negative.npy", lambda path: files.header(path, "(-4, 8, 8)")),
    file("source", "zero.npy", lambda path: files.header(path, "(0, 8, 8)")),
    file("source", "nonsense.npy", lambda path: files.header(path, "'many'")),
    file("source", "code.npy", lambda path: files.header(path, "__import__('os').getpid()")),
    file("source", "deep.npy", lambda path: files.header(path, "(" * 3000 + "1" + ")" * 3000, length=6200)),
    file("source", "kind.npy", lambda path: files.header(path, "(4, 4, 4)", "<x9")),
    file("source", "version.npy", lambda path: files.text(path, b"\x93NUMPY\x09\x00" + bytes(120))),
    file("source", "pipe.npy", files.fifo),
    file("source", "pipe.npz", files.fifo),
    file("source", "text.npz", lambda path: files.text(path, "hello")),
    file("source", "empty.npz", lambda path: files.text(path, "")),
    file("source", "cut.npz", lambda path: files.cut(files.savez(path, images=IMAGES, labels=LABELS))),
    file("source", "flipped.npz", lambda path: files.flipped(files.savez(path, images=IMAGES), 0.5)),
    file("source", "nothing.npz", lambda path: files.savez(path, other=IMAGES)),
    file("source", "none.npz", lambda path: files.savez(path)),
    file("source", "objects.npz", lambda path: files.npz_of(path, "images.npy", files.npy_bytes(np.array([{}], dtype=object)))),
    file("source", "no-array.npz", lambda path: files.npz_of(path, "images.npy", b"hello")),
    file("source", "member.npz", lambda path: files.npz_of(path, "images", b"hello")),
    file("source", "bomb.npz", files.bomb),
    file(SOURCE, "floats.npz", lambda path: files.savez(path, images=np.full((4, 8, 8), 9.0))),
    file("labels", "labels.npz", lambda path: files.savez(path, images=IMAGES, labels=LABELS[:2])),
    file("labels", "objects-labels.npz", lambda path: files.savez(path, images=IMAGES, labels=LABELS + 0.5)),
    file("features", "features.npz", lambda path: files.savez(path, x=ROWS, features=["a", "b"])),
    file("features", "numbers.npz", lambda path: files.savez(path, x=ROWS, features=[1, 2, 3])),
    file("split", "one.npz", lambda path: files.savez(path, images=IMAGES), split="test"),
    file("source", "picture.png", files.picture),
    file("source", "archive.npy.gz", lambda path: files.text(path, gzip.compress(b"x"))),
    file("source", "notes.txt", lambda path: files.text(path, "hello")),
    file("source", "pipe", files.fifo),
    file("source", "bad\x1b[31mname.npz", lambda path: files.text(path, "hello")),
    file("source", "two\nlines.npy", lambda path: files.text(path, "hello")),
    # Tables.
    *(
        table(argument, content)
        for argument, content in (
            ("source", ""), ("source", "a,b\n"), ("source", "1,2\n3,4\n"), ("source", "a,b\n1\n"), ("source", "a,b\n1,2,3\n"),
            ("source", 'a,b\n1,"2\n'), ("source", b"a,b\n1,\xfc\n"), ("source", b"a,b\n1,\0\n"), ("source", b"PK\x03\x04" + bytes(60)),
            ("source", "a\n" + "x" * 200_000 + "\n"), ("columns", "a,a\n1,2\n"), ("columns", "a,,b\n1,2,3\n"),
            ("column 'a", "a\ninf\n2\n"), ("column 'a", "a\n-Infinity\n2\n"), ("column 'a", "a\n99999999999999999999\n"),
            ("columns", "a\n" + "".join(f"person {i}\n" for i in range(40))),
            ("columns", "a\n" + "".join(f"{i}%\n" for i in range(40))),
            ("columns", "a\n" + "".join(f"0{i % 9 + 1}/0{i % 8 + 1}/20{i + 10}\n" for i in range(40))),
            ("columns", "a\n" + "".join(f"{i}\n" for i in range(40)) + "oops\n"),
        )
    ),
    *(table("label", "a,b\nx,1\n,2\n", label=label) for label in ("a", "c", "A")),
    *(bad("label", opened, FRAME, label=label) for label in ("c", "B", 3, None, ["a"])),
    *(bad("label", opened, FRAME, label=label) for label in ("number", "day", "absent")),
    bad("label", opened, FRAME, label="few", exclude=["few"]),
    *(bad(name, opened, FRAME, **{name: value}) for name in ("exclude", "categories") for value in ("few", ["gone"], [1], 3, None)),
    *(bad("missing", opened, FRAME, missing=missing) for missing in ("refuse", "drop", None, True)),
    *(bad("table", opened, FRAME, table=value) for value in ("few", 3, {})),
    *(bad("hold_out", opened, IMAGES, hold_out=share) for share in (-0.1, 0.9, "5%", None, float("nan"))),
    bad("hold_out", opened, [1, 2], hold_out=0.1),
    bad("split", opened, IMAGES, split="test", hold_out=0.05),
    bad("columns", opened, FRAME, exclude=list(FRAME)),
    *(bad("exclude|label|categories|missing", opened, IMAGES, **option) for option in ({"exclude": ["a"]}, {"label": "a"}, {"missing": "refuse"})),
    bad("size", opened, FRAME, size=8),
    bad("kind", opened, FRAME, kind="images"),
    bad("split", opened, FRAME, split="test"),
    bad("source", opened, pandas.DataFrame()),
    bad("columns", opened, pandas.DataFrame([[1, 2]], columns=["a", "a"])),
    bad("columns", opened, pandas.DataFrame({("a", "b"): [1, 2]})),
    *(
        bad("column 'a", opened, pandas.DataFrame({"a": values}))
        for values in (
            [[1], [2]], [1j, 2], [1, "x"], [1.0, float("inf")], [2**60, 1], [{}, {}], [b"x", b"y"], [(1, 2), (3, 4)],
            pandas.to_timedelta([1, 2], unit="D"), pandas.period_range("2024", periods=2, freq="D"), pandas.cut([1, 2, 3], 2),
        )
    ),
    file("source", "text.parquet", lambda path: files.text(path, "hello")),
    file("source", "pipe.csv", files.fifo),
    file("source", "pipe.parquet", files.fifo),
    bad("source", opened, "nowhere.csv"),
    # Folders.
    file("source", "empty", lambda path: (path.mkdir(), path)[1]),
    file("source", "texts", folder_of("a.txt", "b.md", content="hello")),
    file("source", "broken", folder_of("a.png", "b.jpg", content="hello")),
    file("source", "empties", folder_of("a.png", content="")),
    file("source", "heic", folder_of("a.heic", "b.heic", content="hello")),
    file("source", "looped", loop),
    file("source", "hidden", folder_of(".hidden/a.png")),
    file("split", "flat", folder_of("a.png"), split="test"),
    file("kind", "values", folder_of("a.png"), kind="values"),
]  # fmt: skip
