"""A UNet of diffusers as a network of ours, and back."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.config.diffusers import FLOW_STEPS, read_config, read_scheduler, read_unet
from fastgen.diffusion.scheduler import schedule_of
from fastgen.diffusion.schedules import Discrete
from fastgen.dropin import optimize
from fastgen.errors import expect

CLASSES = ("UNet2DModel", "UNet2DConditionModel")
PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}  # of a UNet2DModel without classes


class DiffusersUNet(nn.Module):
    """net(x, t, label=None, context=None) -> out of a UNet2DModel or UNet2DConditionModel of diffusers.

    unet: the model itself, whose weights stay where they are. scheduler: the scheduler of its diffusion, as
    `Diffusion.from_scheduler` takes it, by which t becomes the timestep that the model knows: an integer index on a chain of
    betas, 1000·sigma on a flow. num_classes: how many classes labels name, num_class_embeds when not given; where the model has
    one embedding more, it is the null label's. context: diffusers' encoder_hidden_states.

    Raises ValueError, naming the key of the model's config, for a model that needs more than these inputs; in forward, for a
    label or context that does not fit. Needs diffusers, else ModuleNotFoundError.
    """

    def __init__(self, unet: nn.Module, scheduler: Any, num_classes: int | None = None):
        super().__init__()
        config = read_config(unet.config) | {"_class_name": type(unet).__name__}  # type: ignore[arg-type]
        check_unet(config)
        self.unet, self.scheduler = unet, read_scheduler(scheduler)
        self.schedule = schedule_of(self.scheduler)
        self.num_classes = count_classes(config, num_classes)
        self.has_null_label = self.num_classes is not None and config["num_class_embeds"] > self.num_classes
        self.takes_context, self.conditional = needs_context(config), config["_class_name"] == "UNet2DConditionModel"

    @classmethod
    def from_config(cls, unet: dict[str, Any], scheduler: dict[str, Any], num_classes: int | None = None) -> "DiffusersUNet":
        """A network with new weights, made of the config.json of a UNet and the scheduler_config.json of a scheduler, after
        `fastgen.optimize`. Raises what the class does."""
        check_unet(unet)
        model = getattr(import_diffusers(), unet["_class_name"]).from_config(unet)
        optimize(model, channels_last=False)  # whoever places the network on a device lays it out
        return cls(model, scheduler, num_classes)

    @classmethod
    def from_pretrained(cls, path: str | Path, scheduler: Any = None, num_classes: int | None = None) -> "DiffusersUNet":
        """The UNet in a folder that diffusers wrote: a pipeline's, or a model's own, which has no scheduler. Raises ValueError
        for a folder without weights in safetensors, and where there is no scheduler and none is given."""
        if scheduler is None:
            scheduler = Path(path) / "scheduler"
            expect("scheduler", None, scheduler.is_dir(), f"a scheduler, since {str(path)!r} holds none")
        return cls(load_unet(Path(path)), scheduler, num_classes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes unet/ and scheduler/, which diffusers' from_pretrained loads, and model_index.json where diffusers has a
        pipeline of just these parts."""
        diffusers, folder = import_diffusers(), Path(folder)
        scheduler = getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler)
        pipeline = None if self.conditional or self.num_classes else PIPELINES.get(type(scheduler).__name__)
        if pipeline is not None:
            getattr(diffusers, pipeline)(self.unet, scheduler).save_pretrained(folder)
        else:
            self.unet.save_pretrained(folder / "unet")  # type: ignore[operator]
            scheduler.save_pretrained(folder / "scheduler")

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W). t: (N,) in [0, 1]. label: int64 (N,), the null label when None. context: (N, L, D). The prediction, of
        x's shape. Raises ValueError for a label or context that does not fit."""
        if (context is not None) != self.takes_context:
            expected = "(N, L, D) for cross-attention" if self.takes_context else "None, since the model has no cross-attention"
            raise ValueError(f"context: expected {expected}, got {None if context is None else tuple(context.shape)}")
        conditions = {"encoder_hidden_states": context} if self.conditional else {}
        return self.unet(x, self.timestep(t), class_labels=self._label(label, x), **conditions).sample

    def timestep(self, t: Tensor) -> Tensor:
        """The timestep of diffusers, (N,), at t (N,) in [0, 1]."""
        if isinstance(self.schedule, Discrete):
            return (self.schedule.level(t) - 1).clamp(min=0)  # t = 0 is no step of the chain
        return FLOW_STEPS * self.schedule.sigma(t)

    def _label(self, label: Tensor | None, x: Tensor) -> Tensor | None:
        if self.num_classes is None:
            if label is not None:
                raise ValueError("label: expected None from a UNet without num_class_embeds, got labels")
        elif label is None:
            if not self.has_null_label:
                raise ValueError(f"label: expected classes below {self.num_classes}, since there is no null label, got None")
            return torch.full((len(x),), self.num_classes, device=x.device)
        return label


def check_unet(config: dict[str, Any]) -> None:
    """Raises ValueError, naming the key, for the configuration of a model that DiffusersUNet cannot be."""
    name = config.get("_class_name")
    expect("unet._class_name", name, name in CLASSES, " or ".join(CLASSES))
    channels = config.get("in_channels")
    expect("unet.out_channels", config.get("out_channels"), config.get("out_channels") == channels, f"in_channels {channels}")
    for key, known in (
        ("time_embedding_type", (None, "positional")),
        ("class_embed_type", (None,)),
        ("addition_embed_type", (None,)),
        ("encoder_hid_dim_type", (None, "text_proj")),
    ):
        expect(f"unet.{key}", config.get(key), config.get(key) in known, " or ".join(map(str, known)))


def needs_context(config: dict[str, Any]) -> bool:
    """Whether a UNet has cross-attention."""
    blocks = [*config.get("down_block_types", ()), config.get("mid_block_type"), *config.get("up_block_types", ())]
    return config.get("_class_name") == "UNet2DConditionModel" and any("CrossAttn" in str(block) for block in blocks)


def count_classes(config: dict[str, Any], num_classes: int | None) -> int | None:
    """How many classes a UNet has, None for one without; num_classes: how many it shall have. Raises ValueError where these do
    not fit."""
    known = config.get("num_class_embeds")
    if known is None:
        expect("num_classes", num_classes, num_classes is None, "None for a UNet without num_class_embeds")
        return None
    expected = f"{known}, as num_class_embeds, or {known - 1}, with the null label beside them"
    expect("num_classes", num_classes, num_classes in (None, known, known - 1), expected)
    return known if num_classes is None else num_classes


def load_unet(path: Path) -> nn.Module:
    """The UNet in a model's or a pipeline's folder, in fp32, from safetensors alone. Raises ValueError where there is none, or it
    lacks weights."""
    config, folder = read_unet(path)
    check_unet(config)
    cls = getattr(import_diffusers(), config["_class_name"])
    if not any(folder.glob("diffusion_pytorch_model*.safetensors*")):
        raise ValueError(f"unet: expected weights in diffusion_pytorch_model.safetensors, got none such in {str(folder)!r}")
    try:
        unet, report = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"unet: cannot load {str(folder)!r}: {error}") from None
    odd = [*report["missing_keys"], *report["unexpected_keys"]]
    expect(f"unet: {str(folder)!r}", odd, not odd, "the weights that its config.json describes, beside these keys")
    return unet


def import_diffusers() -> Any:
    """The module diffusers. Raises ModuleNotFoundError, with how to install it."""
    try:
        import diffusers
    except ModuleNotFoundError:
        raise ModuleNotFoundError("diffusers is needed for its models and schedulers: pip install diffusers") from None
    return diffusers
