"""Calls of the ops' launchers that between them reach every configuration: what proof.aot compiles."""

from proof.aot_cases import attention, group_norm, losses, optimizer, sampling, transformer, vae
from proof.aot_cases.launch import Launch

__all__ = ["LAUNCHES", "Launch"]

LAUNCHES = [
    *vae.philox(),
    *vae.reparameterize_kl(),
    *sampling.q_sample(),
    *losses.diffusion_loss(),
    *losses.denoising_loss(),
    *vae.reconstruction_nll(),
    *sampling.timestep_embedding(),
    *sampling.to_x0(),
    *sampling.sampler_step(),
    *group_norm.group_norm(),
    *attention.attention(),
    *transformer.layer_norm(),
    *transformer.geglu(),
    *optimizer.adamw_ema(),
]
