"""proof.host runs in a process of its own, which must not see TRITON_INTERPRET."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.kernels
def test_host(tmp_path):
    """It finds that calls that are repeated launch what first calls launch. Of Python functions they call at most 30 forward,
    where first calls take up to 170, and 90 both ways, of which 25 are autograd.grad's."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    variables.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "proof.host", "--rounds", "1", "--json", str(tmp_path / "host.json")]
    process = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = json.loads((tmp_path / "host.json").read_text())["rows"]
    assert {row["op"] for row in rows} >= {"group_norm", "layer_norm", "geglu", "attention_qkv"}
    most = {"forward": 30, "forward and backward": 90}
    assert [row for row in rows if row["calls"] > most[row["direction"]]] == []
    assert all(row["first_calls"] > 2 * row["calls"] for row in rows if row["direction"] == "forward")
