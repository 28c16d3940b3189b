"""--init-from: the network that training starts from, first its settings, then its weights.

The settings are free of torch, so that the command line can show them at once.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen.config.diffusers import prediction_of, read_scheduler, read_unet
from fastgen.config.files import load_yaml
from fastgen.config.schema import DiffusersConfig, TrainConfig
from fastgen.errors import expect

if TYPE_CHECKING:
    from torch import Tensor, nn


def starting_from(config: TrainConfig, path: Path) -> TrainConfig:
    """The configuration with the network in `path`: the folder of a UNet or pipeline that diffusers wrote, or of a run.

    A UNet of diffusers brings its architecture, and a pipeline its scheduler, which sets `diffusion.schedule` and
    `diffusion.prediction`; the run of such a UNet brings what it began with. The run of another model leaves the configuration as
    it is, which must be for the same model.

    Raises ValueError for a folder that is none of these, and for settings of a VAE."""
    if is_run(path):
        own = load_yaml(path / "config.yaml").model
        return _with_model(config, own) if isinstance(own, DiffusersConfig) else config
    expect("init_from", str(path), path.is_dir(), "the folder of a run, or of a model or pipeline of diffusers")
    unet, folder = read_unet(path)
    scheduler = read_scheduler(path / "scheduler") if folder != path and (path / "scheduler").is_dir() else None
    return _with_model(config, DiffusersConfig(unet, scheduler))


def load_weights(model: "nn.Module", path: Path, description: dict[str, Any]) -> None:
    """Puts the weights in `path` into `model`, in place: the averaged ones of a run's last checkpoint, or those of a UNet that
    diffusers wrote. description: the model's, as `fastgen.runs.run.describe` makes it.

    Raises ValueError for the weights of another model, naming the first key that differs, or of another diffusion."""
    from fastgen.models.diffusers_unet import load_unet  # torch takes a second to import
    from fastgen.runs import checkpoint
    from fastgen.runs.run import find_checkpoint

    if is_run(path):
        folder = find_checkpoint(path)
        trained = checkpoint.load_document(folder, "config")
        for name in ("model", "diffusion"):
            expect(f"init_from: {name}", description[name], description[name] == trained[name], f"{trained[name]}, as in {path}")
        weights = checkpoint.load_tensors(folder, "ema")
    else:
        weights = {f"unet.{key}": value for key, value in load_unet(path).state_dict().items()}
    _expect_same(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "config.yaml").is_file()


def _with_model(config: TrainConfig, model: DiffusersConfig) -> TrainConfig:
    diffusion = config.diffusion
    expect("init_from", model.unet.get("_class_name"), diffusion is not None, "a VAE for settings of a VAE")
    assert diffusion is not None
    if model.scheduler is not None:
        diffusion = dataclasses.replace(diffusion, schedule="diffusers", prediction=prediction_of(model.scheduler))
    return dataclasses.replace(config, model=model, diffusion=diffusion)


def _expect_same(own: dict[str, "Tensor"], given: dict[str, "Tensor"], path: Path) -> None:
    for key in [*own, *given]:
        expected, got = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (own, given))
        expect(f"init_from: {key} of {path}", got, expected == got, f"shape {expected}, as in the model that is to be trained")
