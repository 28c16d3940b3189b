"""The progress bar of what takes long, on a terminal or in a notebook."""

import sys

from tqdm.auto import tqdm


def progress_bar(total: int, *, initial: int = 0, unit: str = "step", shown: bool | None = None, delay: float = 0.0) -> tqdm:
    """A bar of tqdm. shown: None for one where somebody watches, see `is_watched`. delay: seconds until it appears."""
    shown = is_watched() if shown is None else shown
    return tqdm(total=total, initial=initial, unit=unit, disable=not shown, delay=delay)


def is_watched() -> bool:
    """Whether stderr is a terminal, or this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return (sys.stderr is not None and sys.stderr.isatty()) or (shell is not None and "IPKernelApp" in shell.config)
