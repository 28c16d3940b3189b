"""Arrays of numbers that are no pixels, as fp32."""

import numpy as np

KINDS = ("auto", "images", "values")


def is_values(array: np.ndarray, kind: str) -> bool:
    """Whether the array is read as values: for "auto" where it is floating and has two dimensions, whatever the numbers are."""
    return kind == "values" or (kind == "auto" and array.ndim == 2 and array.dtype.kind == "f")


def check_values(array: np.ndarray, name: str) -> None:
    """Raises ValueError unless these are the rows of a table, (N, F), or signals, (N, C, L), one at least."""
    if array.ndim not in (2, 3):
        raise ValueError(f"values must have shape (N, F), a table, or (N, C, L), signals; got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"values must be real numbers, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"no values found in {name} of shape {array.shape}")


def to_values(array: np.ndarray) -> np.ndarray:
    """fp32 of the same shape. Raises ValueError, naming the place, for what is not finite in fp32."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, order="C")
    bad = ~np.isfinite(values)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"values must be finite in fp32, got {array[place]} in column {place[1]}: leave out such rows, or fill them"
        )
    return values


def check_features(features: np.ndarray, array: np.ndarray) -> tuple[str, ...]:
    """The names of the features of an array of values. Raises ValueError unless there is one for each."""
    if features.shape != (array.shape[1],) or features.dtype.kind != "U":
        raise ValueError(f"features must be {array.shape[1]} names, one for each; got {features.dtype} {features.shape}")
    return tuple(features.tolist())
