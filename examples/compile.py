"""fastgen.optimize with torch.compile: the whole model, or block by block, which compiles once for all blocks that are alike.

    python examples/compile.py                     # the whole, a graph without a break
    python examples/compile.py --regional
    python examples/compile.py --mode max-autotune

It needs diffusers and a C++ compiler, or a GPU. It prints how long the first step took, which compiles, and how long the others.
"""

import time
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
import tyro
from diffusers import UNet2DModel
from torch import nn

import fastgen


@dataclass(frozen=True)
class Options:
    """Compile a UNet2DModel after fastgen.optimize."""

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    regional: bool = False
    """Compile the residual and attention blocks, instead of the whole."""
    width: int = 32
    """Channels of the first level."""
    steps: int = 5
    """Steps that are timed."""


def main(options: Options) -> None:
    """Times steps of the compiled model and of the untouched one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(options.width, 2 * options.width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).to(device)
    arguments = torch.randn(4, 3, 32, 32, device=device), torch.tensor([1, 200, 500, 900], device=device)

    optimized = deepcopy(model)
    fastgen.optimize(optimized)  # before torch.compile
    if options.regional:
        torch._dynamo.config.recompile_limit = 64  # blocks of other widths are other graphs, of which torch makes 8
        for module in optimized.modules():
            if type(module).__name__ in ("ResnetBlock2D", "Attention"):
                module.compile(fullgraph=True, mode=options.mode)
    else:
        optimized.compile(fullgraph=True, mode=options.mode)

    seconds = [timed(optimized, arguments) for _ in range(1 + options.steps)]
    eager = [timed(model, arguments) for _ in range(1 + options.steps)]
    first, *others = seconds
    print(f"first step {first:.1f} s, then {1000 * median(others):.1f} ms; untouched and eager {1000 * median(eager[1:]):.1f} ms")

    with torch.no_grad():
        difference = (optimized(*arguments).sample - model(*arguments).sample).abs().max()
    print(f"largest difference from the untouched model: {difference:.1e}")


def timed(model: nn.Module, arguments: tuple[torch.Tensor, ...]) -> float:
    """Seconds of a forward and backward pass."""
    start = time.perf_counter()
    model(*arguments).sample.square().mean().backward()
    model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Options))
