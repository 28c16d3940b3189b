"""fastgen: VAEs and diffusion models that train and sample fast.

Importing it imports nothing else: each public name is loaded when it is first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "VAE": "fastgen.models",
    "ConvVAE": "fastgen.models",
    "UNet": "fastgen.models",
    "DiffusionModel": "fastgen.models",
    "DiffusersUNet": "fastgen.models",
    "VAEObjective": "fastgen.models",
    "DiffusionObjective": "fastgen.diffusion.objective",
    "Diffusion": "fastgen.diffusion.process",
    "open_dataset": "fastgen.data",
    "load": "fastgen.runs.run",
    "train_step": "fastgen.training.train",
    "disabled": "fastgen_kernels.dispatch",
    "optimize": "fastgen.dropin",
    "restore": "fastgen.dropin",
}
_MODULES = ("functional", "optim", "schedules", "samplers", "likelihood", "applications")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"fastgen.{name}")
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
