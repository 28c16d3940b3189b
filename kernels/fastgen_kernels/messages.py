"""How error messages show what was given; free of torch."""

import reprlib

LENGTH = 400


class _Repr(reprlib.Repr):
    """Deep, long or recursive values in bounded time, arrays and tensors by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong = 3, 40
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 16
        self.maxstring = self.maxother = 300

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) < self.maxstring else f"{x[: self.maxstring // 2]!r}... of {len(x)} characters"

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**self.maxlong else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x: object, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and len(shape):
            return f"{type(x).__name__} of shape {tuple(shape)}"
        return super().repr_instance(x, level)


_REPR = _Repr()


def printable(text: object) -> str:
    """A text or a path with its characters that are not printable, such as those that steer a terminal, as Python escapes them:
    for names of files and classes, which are others'."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def shown(value: object) -> str:
    """A value's repr for a message: one line of printable characters, cut to a readable length."""
    text = printable(" ".join(_REPR.repr(value).split()))
    return text if len(text) <= LENGTH else f"{text[:LENGTH]}..."
