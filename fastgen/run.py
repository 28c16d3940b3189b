"""A run: the folder that training leaves, and the trained model in it."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen import checkpoint
from fastgen.config import ConvVAEConfig, DiffusersConfig, TrainConfig, UNetConfig
from fastgen.config_file import load_yaml, plain
from fastgen.device import autocast, place, resolve_device
from fastgen.diffusion import Diffusion
from fastgen.errors import expect
from fastgen.generate import generate, sample_labels
from fastgen.interchange.description import multiple_of, unet_arguments
from fastgen.interchange.scheduler_config import scheduler_of
from fastgen.models import MODELS


@dataclass(frozen=True)
class Run:
    """A trained model. `model` has the averaged weights and is in eval mode; `diffusion` is None for a VAE; `shape` is (C, H, W);
    `classes` are their names, None without labels; `step` is the checkpoint's."""

    path: Path
    config: TrainConfig
    model: nn.Module
    diffusion: Diffusion | None
    shape: tuple[int, ...]
    classes: list[str] | None
    step: int
    device: torch.device

    def sample(
        self,
        n: int = 64,
        *,
        label: int | Sequence[int] | None = None,
        guidance: float = 1.0,
        steps: int = 25,
        sampler: str = "euler",
        seed: int = 0,
        batch_size: int = 64,
    ) -> tuple[Tensor, Tensor | None]:
        """n images, uint8 (n, C, H, W) on the CPU, and their labels, int64 (n,) or None.

        label: one class for all, or a list that is repeated; by default every class in turn. guidance: w of classifier-free
        guidance. Image i depends on the seed and i, not on n or batch_size. Raises ValueError for what the model cannot do.
        """
        expect("n", n, n >= 1, "a whole number >= 1")
        expect("batch_size", batch_size, batch_size >= 1, "a whole number >= 1")
        expect("seed", seed, 0 <= seed < 2**63, "a whole number >= 0")
        expect("guidance", guidance, math.isfinite(guidance), "a finite number")
        labels = sample_labels(n, self.num_classes, label)
        expect("guidance", guidance, guidance == 1 or labels is not None, "1, since the model has no classes")
        images = []
        for start in range(0, n, batch_size):
            samples = range(start, min(n, start + batch_size))
            with autocast(self.device, self.config.precision):
                images.append(
                    generate(
                        self.model,
                        self.diffusion,
                        self.shape,
                        samples,
                        label=None if labels is None else labels[samples.start : samples.stop],
                        guidance=guidance,
                        steps=steps,
                        sampler=sampler,
                        seed=seed,
                    ).cpu()
                )
        return torch.cat(images), labels

    @property
    def num_classes(self) -> int | None:
        """How many classes the model was given; None for a VAE, which knows no labels."""
        return getattr(self.model, "num_classes", None)


def load(path: str | Path, *, step: int | None = None, device: str = "auto") -> Run:
    """The run in a folder, at its last checkpoint or at `step`. Raises ValueError for a folder that is no run or is corrupt."""
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run: expected the folder of a training run, got {str(path)!r}: it has no config.yaml")
    config = load_yaml(path / "config.yaml")
    folder = find_checkpoint(path, step)
    where = resolve_device(device)
    description = checkpoint.load_document(folder, "config")
    trained, given = description.get("diffusion"), _noising(config)
    expect(f"{path / 'config.yaml'}: diffusion", given, given == trained, f"{trained}, as in the checkpoint")
    model = MODELS[description["model"]](**description["arguments"])
    model.load_state_dict(checkpoint.load_tensors(folder, "ema"))
    return Run(
        path,
        config,
        place(model, where).eval().requires_grad_(False),
        make_diffusion(config),
        tuple(description["shape"]),
        description["classes"],
        int(folder.name),
        where,
    )


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """The folder of the last checkpoint of a run, or of the one at `step`. Raises ValueError where there is none."""
    steps = checkpoint.steps(path / "checkpoints")
    if not steps:
        raise ValueError(f"run: {str(path)!r} has no checkpoint yet")
    if step is not None and step not in steps:
        raise ValueError(f"step: expected one of {', '.join(map(str, steps))}, got {step}")
    return checkpoint.at_step(path / "checkpoints", steps[-1] if step is None else step)


def describe(config: TrainConfig, shape: tuple[int, ...], num_classes: int | None, classes: list[str] | None) -> dict[str, Any]:
    """What a checkpoint must say for its model to be built and used again: the class, its arguments, the data it was made for,
    and what its output means.

    Raises ValueError for images that the model cannot take."""
    channels, height, width = shape
    model, arguments = config.model, plain(dataclasses.asdict(config.model))
    if isinstance(model, UNetConfig):
        _expect_multiples(model.patch * 2 ** (len(model.multipliers) - 1), height, width)
        name, arguments = "UNet", arguments | {"in_channels": channels, "num_classes": num_classes}
    elif isinstance(model, DiffusersConfig):
        assert config.diffusion is not None  # TrainConfig has it for every UNet
        name, arguments = "DiffusersUNet", unet_arguments(model, config.diffusion, shape, num_classes)
        _expect_multiples(multiple_of(model.unet), height, width)
    elif isinstance(model, ConvVAEConfig):
        if height != width:
            raise ValueError(f"data: expected square images for a ConvVAE, got {height}x{width}; set data.size")
        name, arguments = "ConvVAE", arguments | {"in_channels": channels, "image_size": height}
    else:
        name, arguments = "VAE", arguments | {"input_dim": channels * height * width}
    return {"model": name, "arguments": arguments, "shape": list(shape), "classes": classes, "diffusion": _noising(config)}


def _expect_multiples(multiple: int, height: int, width: int) -> None:
    if height % multiple or width % multiple:
        raise ValueError(
            f"data: expected sides that are multiples of {multiple}, which the model halves and halves again, "
            f"got {height}x{width}; set data.size"
        )


def _noising(config: TrainConfig) -> dict[str, Any] | None:
    """What the output of a diffusion model cannot be read without."""
    settings, model = config.diffusion, config.model
    if settings is None:
        return None
    named = {"schedule": settings.schedule, "prediction": settings.prediction}
    return named | {"scheduler": scheduler_of(model, settings)} if isinstance(model, DiffusersConfig) else named


def make_diffusion(config: TrainConfig) -> Diffusion | None:
    """The diffusion that a configuration asks for, None for a VAE."""
    settings, model = config.diffusion, config.model
    if settings is None:
        return None
    if isinstance(model, DiffusersConfig):
        return Diffusion.from_scheduler(scheduler_of(model, settings), settings.weighting)
    return Diffusion(settings.schedule, settings.prediction, settings.weighting)
