"""Benchmarks run from a checkout without installation: `kernels/`, with the ops and what proves them, is put on the path."""

import sys
from pathlib import Path

KERNELS = str(Path(__file__).parents[1] / "kernels")
if KERNELS not in sys.path:
    sys.path.insert(0, KERNELS)
