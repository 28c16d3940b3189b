"""Models, and how a checkpoint names them."""

from torch import nn

from fastgen.models.conv_vae import ConvVAE
from fastgen.models.diffusion_model import DiffusionModel
from fastgen.models.unet import UNet
from fastgen.models.vae import VAE, VariationalAutoencoder

MODELS: dict[str, type[nn.Module]] = {"UNet": UNet, "VAE": VAE, "ConvVAE": ConvVAE}

__all__ = ["MODELS", "VAE", "ConvVAE", "DiffusionModel", "UNet", "VariationalAutoencoder"]
