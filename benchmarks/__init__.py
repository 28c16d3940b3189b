"""Benchmarks run from a checkout, where nothing needs to be installed: `kernels/`, with the ops and their proofs, is put on the path."""

import sys
from pathlib import Path

KERNELS = str(Path(__file__).parents[1] / "kernels")
if KERNELS not in sys.path:
    sys.path.insert(0, KERNELS)
