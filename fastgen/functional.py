"""The fused operations, one documented name each.

Each is a formula with a plain PyTorch reference; kernels/README.md has the table. Any strides are accepted,
channels_last in gives channels_last out, and the arithmetic is in fp32 (fp64 for fp64) whatever the tensors' dtype.
"""

from fastgen_kernels.attention import attention, attention_qkv
from fastgen_kernels.denoising_loss import denoising_loss
from fastgen_kernels.diffusion_loss import diffusion_loss
from fastgen_kernels.geglu import geglu
from fastgen_kernels.group_norm import add_group_norm, group_norm
from fastgen_kernels.layer_norm import add_layer_norm, layer_norm
from fastgen_kernels.philox import at, fresh_key, noise_key, philox_normal, philox_uniform
from fastgen_kernels.q_sample import q_sample
from fastgen_kernels.reconstruction_nll import reconstruction_nll
from fastgen_kernels.reparameterize_kl import reparameterize_kl
from fastgen_kernels.sampler_step import sampler_step
from fastgen_kernels.timestep_embedding import timestep_embedding
from fastgen_kernels.to_x0 import to_x0

__all__ = [
    "add_group_norm",
    "add_layer_norm",
    "at",
    "attention",
    "attention_qkv",
    "denoising_loss",
    "diffusion_loss",
    "fresh_key",
    "geglu",
    "group_norm",
    "layer_norm",
    "noise_key",
    "philox_normal",
    "philox_uniform",
    "q_sample",
    "reconstruction_nll",
    "reparameterize_kl",
    "sampler_step",
    "timestep_embedding",
    "to_x0",
]
