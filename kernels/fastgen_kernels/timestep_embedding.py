"""Sinusoidal embedding of diffusion times, the input of a network:

    cos(1000 t · f_i), sin(1000 t · f_i)   with   f_i = 10000^(-i / half),   i = 0 .. half - 1

Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, appendix B, after Vaswani et al.,
arXiv:1706.03762, section 3.5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_float, check_integer, check_range
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.library import define


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, at dim // 2 geometric frequencies, and a 0 at the end where dim is odd: (N, dim) fp32.

    t: (N,) float, in [0, 1]; the range is checked on a CPU alone, since a GPU would wait.
    dim: at least 2.

    Raises TypeError for a t that is not a float or a dim that is no integer, ValueError for a t that is not (N,) or out of range
    and for a dim < 2.
    """
    check_float(t=t)
    if t.dim() != 1:
        raise ValueError(f"t: expected shape (N,), got {tuple(t.shape)}")
    check_integer("dim", dim, 2)
    check_range("t", t, 0, 1)
    if use_triton(t) and not t.requires_grad:  # the kernel has no gradient
        return _timestep_embedding(t, dim)
    return timestep_embedding_reference(t, dim)


def timestep_embedding_reference(t: Tensor, dim: int) -> Tensor:
    """cos(1000 t·f_i), then sin(1000 t·f_i), then a 0 where dim is odd: (N, dim) fp32, of t (N,) float, computed in fp32.

    An angle of 1000 in fp32 has lost four digits of its sine: values are exact to 1e-4, the kernel's to 2e-7.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = 1000 * t.float()[:, None] * 10_000**-exponent
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2))


def _fake(t: Tensor, dim: int) -> Tensor:
    return t.new_empty((t.shape[0], dim), dtype=torch.float32)


_timestep_embedding = define(
    "timestep_embedding(Tensor t, int dim) -> Tensor", "fastgen_kernels.timestep_embedding_triton:timestep_embedding", _fake
)
