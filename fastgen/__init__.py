"""fastgen: VAEs and diffusion models that train and sample fast.

Importing it imports nothing else: each public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker and an editor read, in the place of __getattr__
    from fastgen import applications, functional, likelihood, optim, samplers, schedules
    from fastgen.config.sampling import Sampling
    from fastgen.data import open_dataset
    from fastgen.diffusion.objective import DiffusionObjective
    from fastgen.diffusion.process import Diffusion
    from fastgen.dropin import optimize, restore
    from fastgen.files.images import save_images
    from fastgen.models import VAE, ConvVAE, DiffusersUNet, DiffusionModel, UNet, VAEObjective
    from fastgen.runs.run import load
    from fastgen.training.train import train_step
    from fastgen_kernels.dispatch import disabled

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "ConvVAE",
    "DiffusersUNet",
    "Diffusion",
    "DiffusionModel",
    "DiffusionObjective",
    "Sampling",
    "UNet",
    "VAEObjective",
    "applications",
    "disabled",
    "functional",
    "likelihood",
    "load",
    "open_dataset",
    "optim",
    "optimize",
    "restore",
    "samplers",
    "save_images",
    "schedules",
    "train_step",
]

_HOME = {
    "VAE": "fastgen.models",
    "ConvVAE": "fastgen.models",
    "UNet": "fastgen.models",
    "DiffusionModel": "fastgen.models",
    "DiffusersUNet": "fastgen.models",
    "VAEObjective": "fastgen.models",
    "DiffusionObjective": "fastgen.diffusion.objective",
    "Diffusion": "fastgen.diffusion.process",
    "Sampling": "fastgen.config.sampling",
    "open_dataset": "fastgen.data",
    "save_images": "fastgen.files.images",
    "load": "fastgen.runs.run",
    "train_step": "fastgen.training.train",
    "disabled": "fastgen_kernels.dispatch",
    "optimize": "fastgen.dropin",
    "restore": "fastgen.dropin",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"fastgen.{name}")
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
