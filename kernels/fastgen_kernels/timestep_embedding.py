"""Times as waves, for a network to read:

    cos(1000 t · f_i), sin(1000 t · f_i)   with   f_i = max_period^(-i / half),   i = 0 .. half - 1

Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, appendix B, after Vaswani et al.,
arXiv:1706.03762, section 3.5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_float
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.library import define


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, at dim // 2 geometric frequencies, and a 0 at the end where dim is odd: (N, dim) fp32.

    t: (N,) float, in [0, 1].
    dim: at least 2.
    max_period: of the slowest wave, in units of t / 1000.

    Raises TypeError for a t that is not a float, ValueError for one that is not (N,), a dim < 2 or a max_period <= 0.
    """
    check_float("timestep_embedding", t=t)
    if t.dim() != 1:
        raise ValueError(f"timestep_embedding: t must have shape (N,), got {tuple(t.shape)}")
    if dim < 2:
        raise ValueError(f"timestep_embedding: dim must be at least 2, got {dim}")
    if not max_period > 0:
        raise ValueError(f"timestep_embedding: max_period must be > 0, got {max_period}")
    if use_triton(t) and not t.requires_grad:  # the kernel has no gradient
        return _timestep_embedding(t, dim, max_period)
    return timestep_embedding_reference(t, dim, max_period)


def timestep_embedding_reference(t: Tensor, dim: int, max_period: float) -> Tensor:
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = 1000 * t.float()[:, None] * max_period**-exponent
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2))


def _launch(t: Tensor, dim: int, max_period: float) -> Tensor:
    from fastgen_kernels.timestep_embedding_triton import timestep_embedding

    return timestep_embedding(t, dim, max_period)


def _fake(t: Tensor, dim: int, max_period: float) -> Tensor:
    return t.new_empty((t.shape[0], dim), dtype=torch.float32)


_timestep_embedding = define("timestep_embedding(Tensor t, int dim, float max_period) -> Tensor", _launch, _fake)
