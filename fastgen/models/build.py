"""From a configuration to its model, its diffusion and what the model is trained for."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from fastgen.config.diffusers import prediction_of, scheduler_of
from fastgen.config.files import plain
from fastgen.config.schema import ConvVAEConfig, DiffusersConfig, DiffusionConfig, TrainConfig, UNetConfig
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
"""How a checkpoint names a model's class."""


def make_model(description: dict[str, Any]) -> nn.Module:
    """The model, with new weights, of a checkpoint's description: its `model`, a name in MODELS, and its `arguments`."""
    return MODELS[description["model"]](**description["arguments"])


def make_diffusion(config: TrainConfig) -> Diffusion | None:
    """The diffusion that a configuration asks for, None for a VAE."""
    settings, model = config.diffusion, config.model
    if settings is None:
        return None
    if isinstance(model, DiffusersConfig):
        return Diffusion.from_scheduler(scheduler_of(model, settings), settings.weighting)
    return Diffusion(settings.schedule, settings.prediction, settings.weighting)
def make_objective(config: TrainConfig, model: nn.Module) -> nn.Module:
    """What `model` is trained for."""
    settings = config.diffusion
    if isinstance(model, VariationalAutoencoder):
        return VAEObjective(model)
    diffusion = make_diffusion(config)
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


def noising(config: TrainConfig) -> dict[str, Any] | None:
    """What the output of a diffusion model cannot be read without."""
    settings, model = config.diffusion, config.model
    if settings is None:
        return None
    named: dict[str, Any] = {"schedule": settings.schedule, "prediction": settings.prediction}
    if settings.condition != "none":
        named |= {"condition": settings.condition, "factor": settings.factor}
    return named | {"scheduler": scheduler_of(model, settings)} if isinstance(model, DiffusersConfig) else named


def model_arguments(
    config: TrainConfig, shape: tuple[int, ...], num_classes: int | None, network_shape: tuple[int, int] | None = None
) -> tuple[str, dict[str, Any]]:
    """The name in MODELS and the arguments of the model that a configuration asks for.

    shape: (C, H, W) of images. network_shape: (C, L) of values as the network takes them, None for images. Raises ValueError for
    images, or values, that the model cannot take."""
    if network_shape is None:
        return _for_images(config, shape, num_classes)
    return _for_values(config, network_shape, num_classes)


def _for_images(config: TrainConfig, shape: tuple[int, ...], num_classes: int | None) -> tuple[str, dict[str, Any]]:
    """The model's class and arguments."""
    channels, height, width = shape
    model, arguments = config.model, plain(dataclasses.asdict(config.model))
    if isinstance(model, UNetConfig):
        _expect_multiples(model.patch * 2 ** (len(model.multipliers) - 1), height, width)
        condition = make_condition(config.diffusion)
        if isinstance(condition, LowResolution):
            fits = height % condition.factor == width % condition.factor == 0
            expect("diffusion.factor", condition.factor, fits, f"a divisor of the images' sides, {height}x{width}")
        beside = 0 if condition is None else condition.channels(channels)
        name, arguments = "UNet", arguments | {"in_channels": channels + beside, "num_classes": num_classes}
        arguments |= {"out_channels": channels} if beside else {}
    elif isinstance(model, DiffusersConfig):
        assert config.diffusion is not None  # TrainConfig has it for every UNet
        name, arguments = "DiffusersUNet", _diffusers_arguments(model, config.diffusion, shape, num_classes)
        _expect_multiples(_multiple_of(model.unet), height, width)
    elif isinstance(model, ConvVAEConfig):
        if height != width:
            raise ValueError(f"data: expected square images for a ConvVAE, got {height}x{width}; set data.size")
        name, arguments = "ConvVAE", arguments | {"in_channels": channels, "image_size": height}
    else:
        name, arguments = "VAE", arguments | {"input_dim": channels * height * width}
    return name, arguments


def _expect_multiples(multiple: int, height: int, width: int) -> None:
    if height % multiple or width % multiple:
        raise ValueError(
            f"data: expected sides that are multiples of {multiple}, which the model halves and halves again, "
            f"got {height}x{width}; set data.size"
        )


def _for_values(config: TrainConfig, network_shape: tuple[int, int], num_classes: int | None) -> tuple[str, dict[str, Any]]:
    """The class of the model that a configuration asks for, and its arguments. Raises ValueError for settings that are for
    images."""
    model, (channels, length) = config.model, network_shape
    if not isinstance(model, UNetConfig):
        kind = type(model).__name__.removesuffix("Config")
        raise ValueError(f"model: expected a UNet for values, got {kind}, which is for images")
    assert config.diffusion is not None  # TrainConfig has it for every UNet
    for name, value, off in (
        ("data.flip", config.data.flip, False),
        ("data.shift", config.data.shift, 0),
        ("diffusion.condition", config.diffusion.condition, "none"),
    ):
        expect(name, value, value == off, f"{off} for values, which are no images")
    if length == 1:
        levels, patch = len(model.multipliers), model.patch
        expect("model.multipliers", model.multipliers, levels == 1, "one level for the rows of a table, which have length 1")
        expect("model.patch", patch, patch == 1, "1 for the rows of a table, which have length 1")
    multiple = model.patch * 2 ** (len(model.multipliers) - 1)
    expect("data", length, length % multiple == 0, f"a length that is a multiple of {multiple}, which the model halves")
    # Of a single position attention is but a linear layer.
    own = {"in_channels": channels, "num_classes": num_classes, "dims": 1, "mid_attention": length > 1}
    return "UNet", plain(dataclasses.asdict(model)) | own


def _diffusers_arguments(
    model: DiffusersConfig, diffusion: DiffusionConfig, shape: tuple[int, ...], num_classes: int | None
) -> dict[str, Any]:
    """What `DiffusersUNet.from_config` builds the network from.

    Raises ValueError for images that it cannot take, or settings that are not those of its scheduler."""
    unet, scheduler = model.unet, scheduler_of(model, diffusion)
    check_unet(unet)
    prediction = prediction_of(scheduler)
    expect("diffusion.prediction", diffusion.prediction, diffusion.prediction == prediction, f"{prediction}, as the scheduler's")
    expect("init_from", unet["_class_name"], not needs_context(unet), "a UNet without cross-attention: images have no context")
    _expect_channels(unet, shape)
    _expect_labels(unet, num_classes, diffusion.label_dropout)
    return {"unet": unet, "scheduler": scheduler, "num_classes": num_classes}


def _multiple_of(unet: dict[str, Any]) -> int:
    """What the sides of images must be multiples of: every level but the last halves them."""
    return 2 ** (len(unet.get("block_out_channels", ())) - 1) if unet["_class_name"] == "UNet2DModel" else 1


def _expect_channels(unet: dict[str, Any], shape: tuple[int, ...]) -> None:
    channels = unet.get("in_channels")
    expect("data", shape[0], shape[0] == channels, f"images of {channels} channels, as the UNet's in_channels; set data.channels")


def _expect_labels(unet: dict[str, Any], num_classes: int | None, label_dropout: float) -> None:
    embeddings = unet.get("num_class_embeds")
    if embeddings is None:
        return
    expect("data", None, num_classes is not None, f"labels, for the UNet's num_class_embeds {embeddings}")
    count_classes(unet, num_classes)
    possible = label_dropout == 0 or embeddings != num_classes
    expect("diffusion.label_dropout", label_dropout, possible, "0, since the UNet has no embedding beyond its classes'")
