"""The tables that come inside scikit-learn, read from their files without importing it."""

import csv

import numpy as np

from fastgen.data.packaged import find_packaged, held_out


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
