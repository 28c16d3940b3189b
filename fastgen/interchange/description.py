"""What a checkpoint must say of a UNet of diffusers, and whether that fits the data."""

from typing import Any

from fastgen.config import DiffusersConfig, DiffusionConfig
from fastgen.errors import expect
from fastgen.interchange.scheduler_config import prediction_of, scheduler_of
from fastgen.interchange.unet import check_unet, count_classes, needs_context


def unet_arguments(
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


def multiple_of(unet: dict[str, Any]) -> int:
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
