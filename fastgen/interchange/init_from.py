"""The network that --init-from names, as settings; free of torch, so that the command line can show them."""

import dataclasses
from pathlib import Path

from fastgen.config.diffusers import prediction_of, read_scheduler, read_unet
from fastgen.config.files import load_yaml
from fastgen.config.schema import DiffusersConfig, TrainConfig
from fastgen.errors import expect


def starting_from(config: TrainConfig, path: Path) -> TrainConfig:
    """The settings with the UNet of diffusers, and its scheduler's diffusion, that lie in `path`: a folder that diffusers wrote,
    or a run of such a UNet. A run of another model leaves the settings as they are: they must be for the same model."""
    if is_run(path):
        own = load_yaml(path / "config.yaml")
        return _with_model(config, own.model) if isinstance(own.model, DiffusersConfig) else config
    expect("init_from", str(path), path.is_dir(), "the folder of a run, or of a model or pipeline of diffusers")
    unet, folder = read_unet(path)
    scheduler = read_scheduler(path / "scheduler") if folder != path and (path / "scheduler").is_dir() else None
    return _with_model(config, DiffusersConfig(unet, scheduler))


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _with_model(config: TrainConfig, model: DiffusersConfig) -> TrainConfig:
    diffusion = config.diffusion
    expect("init_from", model.unet.get("_class_name"), diffusion is not None, "a VAE for settings of a VAE")
    assert diffusion is not None
    if model.scheduler is not None:
        diffusion = dataclasses.replace(diffusion, schedule="diffusers", prediction=prediction_of(model.scheduler))
    return dataclasses.replace(config, model=model, diffusion=diffusion)
