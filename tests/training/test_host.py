import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from fastgen.training.host import keep_freed_memory

if {keep}:
    keep_freed_memory()
def step():
    return [torch.full((400_000,), 1.0) for _ in range(20)]  # 32 MB in blocks of 1.6
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_faults():
    # glibc raises its threshold as blocks are freed, sooner or later; held at its default, every block is mapped anew.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    without, kept = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], env=environment)) for keep in (False, True)
    )
    assert without > 10_000
    assert kept < 100
