"""The models: `UNet`, `DiffusionModel`, the autoencoders `VAE` and `ConvVAE`, and `DiffusersUNet`, a UNet of diffusers."""

from fastgen.models.conv_vae import ConvVAE
from fastgen.models.diffusers_unet import DiffusersUNet
from fastgen.models.diffusion_model import DiffusionModel
from fastgen.models.unet import UNet
from fastgen.models.vae import VAE, VAEObjective, VariationalAutoencoder

__all__ = ["VAE", "ConvVAE", "DiffusersUNet", "DiffusionModel", "UNet", "VAEObjective", "VariationalAutoencoder"]
