"""The optimizer's step and the average of the weights: the op at some sizes, and whole optimizers over a UNet of 9 M parameters
beside PyTorch's and diffusers'."""

from importlib.util import find_spec

import pytest
import torch

import fastgen
from benchmarks.harness.ops import cases
from fastgen.optim import AdamWEMA

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.mark.parametrize("case", cases("adamw_ema"), ids=lambda case: case.shape)
def test_adamw_ema(measured, case):
    measured(case, "forward", {})


def parameters():
    """Of a UNet, with gradients."""
    torch.manual_seed(0)
    model = fastgen.UNet(3, channels=72, multipliers=(1, 2, 2), blocks=2, attention_levels=(1,), head_dim=36, groups=12)
    model.to(DEVICE)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return list(model.parameters())


def by_diffusers(clip):
    """As diffusers' training examples do: AdamW as it comes, and EMAModel."""
    from diffusers.training_utils import EMAModel

    params = parameters()
    optimizer, ema = torch.optim.AdamW(params), EMAModel(params)

    def step():
        if clip:
            torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        ema.step(params)

    return step


def by_torch(clip):
    """As fast as PyTorch's own operations go."""
    params = parameters()
    optimizer, average = torch.optim.AdamW(params, fused=True), [p.detach().clone() for p in params]

    def step():
        if clip:
            torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-3)

    return step


def by_fastgen(clip):
    return AdamWEMA(parameters(), clip=clip, ema=0.999).step


@pytest.mark.parametrize("threads", [None] if GPU else [1, 2])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_optimizer(compare, clip, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    makers = {"AdamW, EMAModel": by_diffusers, "fused AdamW, foreach lerp": by_torch, "fastgen": by_fastgen}
    absent = {} if find_spec("diffusers") else {"AdamW, EMAModel": "diffusers is not installed"}
    steps = {name: make(clip) for name, make in makers.items() if name not in absent}
    size = sum(p.numel() for p in parameters())
    title = f"AdamW and EMA of a UNet of {size / 1e6:.1f} M parameters{', clipped' if clip else ''}"
    try:
        compare(title, steps, rounds=30, peers={"fastgen": [name for name in steps if name != "fastgen"]}, absent=absent)
    finally:
        torch.set_num_threads(before)
