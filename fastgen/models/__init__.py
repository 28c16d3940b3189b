"""Models, and how a checkpoint names them."""

from collections.abc import Callable

from torch import nn

from fastgen.interchange.unet import DiffusersUNet
from fastgen.models.conv_vae import ConvVAE
from fastgen.models.diffusion_model import DiffusionModel
from fastgen.models.unet import UNet
from fastgen.models.vae import VAE, VariationalAutoencoder

MODELS: dict[str, Callable[..., nn.Module]] = {
    "UNet": UNet,
    "VAE": VAE,
    "ConvVAE": ConvVAE,
    "DiffusersUNet": DiffusersUNet.from_config,
}

__all__ = ["MODELS", "VAE", "ConvVAE", "DiffusionModel", "UNet", "VariationalAutoencoder"]
