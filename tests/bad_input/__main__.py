"""`python -m tests.bad_input [GROUP …]`: the scorecard of bad input, by group."""

import sys
import tempfile
from pathlib import Path

from tests.bad_input import GROUPS, load
from tests.bad_input.judge import CLEAR, SILENT, UNCLEAR, scorecard

with tempfile.TemporaryDirectory() as folder:
    counts = scorecard(load(sys.argv[1:] or list(GROUPS)), Path(folder))
print(f"{'group':24}{'N':>5}{CLEAR:>8}{UNCLEAR:>9}{SILENT:>8}")
for group, found in counts.items():
    print(f"{group:24}{sum(found.values()):5}{found[CLEAR]:8}{found[UNCLEAR]:9}{found[SILENT]:8}")
