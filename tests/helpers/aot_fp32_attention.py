"""proof.aot on attention in fp32; with `tf32` as the first argument where PyTorch's own products may be in TF32."""

import dataclasses
import sys

import torch

from proof.aot import main
from proof.aot_cases.attention import stacked

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "tf32":
        torch.backends.cuda.matmul.fp32_precision = arguments.pop(0)
    launches = stacked("channels_last", 16, 64, torch.float32)
    sys.exit(main([dataclasses.replace(launch, capabilities=None, wide={}) for launch in launches], arguments))
