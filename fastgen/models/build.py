"""From a configuration to its model, its diffusion and its objective.

A checkpoint holds what is needed to build its model again without the training data: the name of a class in MODELS and its
arguments, which `model_arguments` derives from the configuration and the data's shape, and the diffusion, see
`describe_diffusion`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from fastgen.config.diffusers import prediction_of, scheduler_of
from fastgen.config.files import plain
from fastgen.config.schema import ConvVAEConfig, DiffusersConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.diffusion.conditions import LowResolution, make_condition
from fastgen.diffusion.objective import DiffusionObjective
from fastgen.diffusion.process import Diffusion
from fastgen.errors import expect
from fastgen.models.conv_vae import ConvVAE
from fastgen.models.diffusers_unet import DiffusersUNet, check_unet, count_classes, needs_context
from fastgen.models.unet import UNet
from fastgen.models.vae import VAE, VAEObjective, VariationalAutoencoder

MODELS: dict[str, Callable[..., nn.Module]] = {
    "UNet": UNet,
    "VAE": VAE,
    "ConvVAE": ConvVAE,
    "DiffusersUNet": DiffusersUNet.from_config,
}
"""The model classes, by their names in checkpoints."""


def make_model(description: dict[str, Any]) -> nn.Module:
    """A model with new weights. description: a checkpoint's, with `model`, a name in MODELS, and `arguments`."""
    return MODELS[description["model"]](**description["arguments"])


def make_diffusion(config: TrainConfig) -> Diffusion | None:
    """The diffusion process of a configuration; None for a VAE.

    Raises ValueError for settings that exclude each other, see `Diffusion`, and, where the UNet is diffusers', for a process that
    diffusers has no scheduler of."""
    settings, scheduler = config.diffusion, scheduler_of(config)
    if settings is None:
        return None
    if scheduler is not None:
        return Diffusion.from_scheduler(scheduler, settings.weighting)
    assert settings.schedule != "diffusers"  # TrainConfig has a scheduler for it
    return Diffusion(settings.schedule, settings.prediction, settings.weighting)


def make_objective(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The loss that `model`, the configuration's, is trained with: `VAEObjective` or `DiffusionObjective`. Raises ValueError as
    `make_diffusion` does."""
    if isinstance(model, VariationalAutoencoder):
        assert isinstance(config.model, VAEConfig)
        return VAEObjective(model, beta=config.model.beta, kl_warmup=config.model.kl_warmup)
    settings, diffusion = config.diffusion, make_diffusion(config)
    assert settings is not None  # TrainConfig has them for every UNet
    assert diffusion is not None
    return DiffusionObjective(
        model,
        diffusion,
        times=settings.times,
        loss=settings.loss,
        label_dropout=settings.label_dropout,
        strata=config.batch_size,
        condition=make_condition(settings),
    )


def describe_diffusion(config: TrainConfig) -> dict[str, Any] | None:
    """What a checkpoint says of the diffusion: what must be known to sample from the model, since its output has no meaning
    without. None for a VAE."""
    settings, scheduler = config.diffusion, scheduler_of(config)
    if settings is None:
        return None
    description: dict[str, Any] = {"schedule": settings.schedule, "prediction": settings.prediction}
    if settings.condition != "none":
        description |= {"condition": settings.condition, "factor": settings.factor}
    return description if scheduler is None else description | {"scheduler": scheduler}


def model_arguments(
    config: TrainConfig, shape: tuple[int, ...], num_classes: int | None, *, values: bool = False
) -> tuple[str, dict[str, Any]]:
    """The name in MODELS, and the arguments, of a configuration's model for data as the network takes them: images of `shape`
    (C, H, W), or `values` of (C, *S), S of one to three dimensions. num_classes: None without labels.

    Raises ValueError for data that the model cannot take, and for settings that such data do not have."""
    name, arguments = _ARGUMENTS[type(config.model)]
    if not values:
        return name, arguments(config, config.model, shape, num_classes)
    if not isinstance(config.model, UNetConfig):
        kind = type(config.model).__name__.removesuffix("Config")
        raise ValueError(f"model: expected a UNet for values, got {kind}, which is for images")
    return name, _unet_of_values(config, config.model, shape, num_classes)


def is_own(config: TrainConfig) -> bool:
    """Whether the model's layers are fastgen's, which are known not to wait for the GPU and to work on tensors without data;
    diffusers' may do otherwise."""
    return _ARGUMENTS[type(config.model)][0] != "DiffusersUNet"


def side_multiple(config: TrainConfig) -> int:
    """What the sides of images must be multiples of, for the model and what it sees beside the noise."""
    model, condition = config.model, make_condition(config.diffusion)
    if isinstance(model, UNetConfig):
        return math.lcm(_multiple(model), condition.factor if isinstance(condition, LowResolution) else 1)
    if isinstance(model, ConvVAEConfig):
        return 2 ** (len(model.multipliers) - 1)
    return 2 ** (len(model.unet.get("block_out_channels", (1,))) - 1) if isinstance(model, DiffusersConfig) else 1


def refuses_labels(config: TrainConfig) -> bool:
    """Whether labels given to the model would be an error: it is a UNet of diffusers without an embedding of classes."""
    return isinstance(config.model, DiffusersConfig) and config.model.unet.get("num_class_embeds") is None


# The arguments of each class: (config, config.model, shape, num_classes) -> arguments.


def _unet(config: TrainConfig, model: UNetConfig, shape: tuple[int, ...], num_classes: int | None) -> dict[str, Any]:
    channels, height, width = shape
    _expect_multiples(_multiple(model), height, width)
    condition = make_condition(config.diffusion)
    if isinstance(condition, LowResolution):
        fits = height % condition.factor == width % condition.factor == 0
        expect("diffusion.factor", condition.factor, fits, f"a divisor of the images' sides, {height}x{width}")
    own = {"in_channels": channels}
    if condition is not None:
        own = {"in_channels": channels + condition.channels(channels), "out_channels": channels}
    return plain(dataclasses.asdict(model)) | own | {"num_classes": num_classes}


def _unet_of_values(config: TrainConfig, model: UNetConfig, shape: tuple[int, ...], num_classes: int | None) -> dict[str, Any]:
    channels, *sides = shape
    assert config.diffusion is not None  # TrainConfig has it for every UNet
    for name, value, off in (
        ("data.flip", config.data.flip, False),
        ("data.shift", config.data.shift, 0),
        ("diffusion.condition", config.diffusion.condition, "none"),
    ):
        expect(name, value, value == off, f"{off} for tables and signals")
    if sides == [1]:
        levels, patch = len(model.multipliers), model.patch
        expect("model.multipliers", model.multipliers, levels == 1, "one level for the rows of a table, which have length 1")
        expect("model.patch", patch, patch == 1, "1 for the rows of a table, which have length 1")
    multiple = _multiple(model)
    given = sides[0] if len(sides) == 1 else tuple(sides)
    what = "a length that is a multiple" if len(sides) == 1 else "sides that are multiples"
    expect("data", given, all(side % multiple == 0 for side in sides), f"{what} of {multiple}, which the model halves")
    # Attention over a single position is a linear layer: it is left out.
    own = {"in_channels": channels, "dims": len(sides), "mid_attention": sides != [1], "num_classes": num_classes}
    return plain(dataclasses.asdict(model)) | own


def _vae(config: TrainConfig, model: VAEConfig, shape: tuple[int, ...], num_classes: int | None) -> dict[str, Any]:
    channels, height, width = shape
    return _of_vae(model) | {"input_dim": channels * height * width}


def _conv_vae(config: TrainConfig, model: ConvVAEConfig, shape: tuple[int, ...], num_classes: int | None) -> dict[str, Any]:
    channels, height, width = shape
    if height != width:
        raise ValueError(f"data: expected square images for a ConvVAE, got {height}x{width}; set data.size")
    return _of_vae(model) | {"in_channels": channels, "image_size": height}


def _of_vae(model: VAEConfig) -> dict[str, Any]:
    """The settings but for those of its loss."""
    return {name: value for name, value in plain(dataclasses.asdict(model)).items() if name not in ("beta", "kl_warmup")}


def _diffusers(config: TrainConfig, model: DiffusersConfig, shape: tuple[int, ...], num_classes: int | None) -> dict[str, Any]:
    unet, diffusion, scheduler = model.unet, config.diffusion, scheduler_of(config)
    assert diffusion is not None  # TrainConfig has it for every UNet
    assert scheduler is not None
    check_unet(unet)
    prediction, channels = prediction_of(scheduler), unet.get("in_channels")
    expect("diffusion.prediction", diffusion.prediction, diffusion.prediction == prediction, f"{prediction}, as the scheduler's")
    expect("init_from", unet["_class_name"], not needs_context(unet), "a UNet without cross-attention: images have no context")
    expect("data", shape[0], shape[0] == channels, f"images of {channels} channels, as the UNet's in_channels; set data.channels")
    _expect_labels(unet, num_classes, diffusion.label_dropout)
    if unet["_class_name"] == "UNet2DModel":  # the others take any size
        _expect_multiples(2 ** (len(unet.get("block_out_channels", ())) - 1), *shape[1:])
    return {"unet": unet, "scheduler": scheduler, "num_classes": num_classes}


_ARGUMENTS: dict[type, tuple[str, Callable[..., dict[str, Any]]]] = {
    UNetConfig: ("UNet", _unet),
    VAEConfig: ("VAE", _vae),
    ConvVAEConfig: ("ConvVAE", _conv_vae),
    DiffusersConfig: ("DiffusersUNet", _diffusers),
}


def _multiple(model: UNetConfig) -> int:
    """What the sides of its input must be multiples of: patches, halved at every level but the last."""
    return model.patch * 2 ** (len(model.multipliers) - 1)


def _expect_multiples(multiple: int, height: int, width: int) -> None:
    if height % multiple or width % multiple:
        raise ValueError(
            f"data: expected sides that are multiples of {multiple}, which the model halves and halves again, "
            f"got {height}x{width}; set data.size"
        )


def _expect_labels(unet: dict[str, Any], num_classes: int | None, label_dropout: float) -> None:
    embeddings = unet.get("num_class_embeds")
    if embeddings is None:
        return
    expect("data", None, num_classes is not None, f"labels, for the UNet's num_class_embeds {embeddings}")
    count_classes(unet, num_classes)
    possible = label_dropout == 0 or embeddings != num_classes
    expect("diffusion.label_dropout", label_dropout, possible, "0, since the UNet has no embedding beyond its classes'")
