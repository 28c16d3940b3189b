"""Where the kernels run: on the GPU, else on the CPU in Triton's interpreter."""

import pytest
import torch
import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = triton.knobs.runtime.interpret

interpreter_only = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, which is used where there is no GPU")
