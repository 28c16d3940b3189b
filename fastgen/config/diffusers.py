"""What diffusers writes about its UNets and schedulers, read, and related to our configurations; free of torch, so that the
command line answers at once."""

from pathlib import Path
from typing import Any

from fastgen.config.files import plain, read_json
from fastgen.config.schema import DiffusersConfig, DiffusionConfig, TrainConfig
from fastgen.errors import expect, lookup

FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_STEPS = 1000
"""A flow's network is told 1000·sigma."""

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_CHAINS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of diffusers as plain lists and numbers, without where it came from."""
    arrays = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in config.items()}
    return {key: value for key, value in plain(arrays).items() if key not in ("_use_default_values", "_name_or_path")}


def read_unet(path: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of the UNet that diffusers wrote into a folder, a pipeline's or a model's own, and the folder with its
    config.json. Raises ValueError where there is none."""
    for folder in (path / "unet", path):
        if (folder / "config.json").is_file():
            return read_config(read_json(folder / "config.json", "unet")), folder
    raise ValueError(f"unet: expected a folder that diffusers wrote, with config.json or unet/config.json, got {str(path)!r}")


def read_scheduler(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler as plain lists and numbers: of an object with `config`, of a mapping, or of the
    scheduler_config.json at a path or in the folder at a path. Raises ValueError for anything else, and for one whose class is
    not known."""
    if isinstance(scheduler, str | Path):
        path = Path(scheduler)
        return read_scheduler(read_json(path / "scheduler_config.json" if path.is_dir() else path, "scheduler"))
    if hasattr(scheduler, "config"):
        return read_config(scheduler.config) | {"_class_name": type(scheduler).__name__}
    expect("scheduler", scheduler, isinstance(scheduler, dict), "a scheduler of diffusers, its config, or a path to it")
    if "_class_name" not in scheduler:  # as in an object's config: only what is saved has it
        expect("scheduler._class_name", None, "beta_schedule" in scheduler or "shift" in scheduler, "the scheduler's class")
        return {"_class_name": "DDPMScheduler" if "beta_schedule" in scheduler else FLOW} | read_config(scheduler)
    return read_config(scheduler)


def prediction_of(scheduler: dict[str, Any]) -> Any:
    """What the scheduler's networks predict, as `DiffusionConfig.prediction` names it. Raises ValueError for another."""
    if scheduler["_class_name"] == FLOW:
        return "flow"
    return lookup("scheduler.prediction_type", scheduler.get("prediction_type", "epsilon"), _PREDICTIONS)


def scheduler_of(config: TrainConfig) -> dict[str, Any] | None:
    """The scheduler's configuration of a UNet of diffusers: of the one that came with it, or of the one that is the diffusion of
    the settings. None for a model of fastgen's own.

    Raises ValueError where diffusers has no scheduler that is this diffusion."""
    if not isinstance(config.model, DiffusersConfig):
        return None
    assert config.diffusion is not None  # TrainConfig has it for every UNet
    return scheduler_for(config.diffusion) if config.model.scheduler is None else config.model.scheduler


def scheduler_for(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The configuration of the scheduler that is this diffusion. Raises ValueError where diffusers has none."""
    if diffusion.schedule == "rectified_flow":
        expect("diffusion.prediction", diffusion.prediction, diffusion.prediction == "flow", f"flow for {FLOW}")
        return {"_class_name": FLOW, "num_train_timesteps": FLOW_STEPS, "shift": 1.0}
    expected = f"{', '.join(_CHAINS)} or rectified_flow for a UNet of diffusers"
    expect("diffusion.schedule", diffusion.schedule, diffusion.schedule in _CHAINS, expected)
    theirs = {ours: name for name, ours in _PREDICTIONS.items()}
    expected = f"{', '.join(theirs)} on betas, for a UNet of diffusers"
    expect("diffusion.prediction", diffusion.prediction, diffusion.prediction in theirs, expected)
    chain = {"num_train_timesteps": 1000, **_CHAINS[diffusion.schedule], "prediction_type": theirs[diffusion.prediction]}
    return {"_class_name": "DDPMScheduler", **chain}
