"""Runs of a second each, for tests of what is done with a run."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from fastgen.config.schema import DataConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.runs.run import Run
from fastgen.training.train import train

LABELLED = TrainConfig(
    data=DataConfig("digits"),
    model=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), groups=4),
    steps=12,
    batch_size=20,
    warmup=3,
    lr=3e-3,
    ema=0.5,
    threads=1,
    log_every=5,
    sample_every=100,
    checkpoint_every=6,
)
VAE = dataclasses.replace(LABELLED, model=VAEConfig(latent_dim=4), diffusion=None)


def labelled(run: Path) -> Path:
    """A UNet on the 8x8 digits, with checkpoints at steps 6 and 12."""
    train(LABELLED, run)
    return run


def vae(run: Path) -> Path:
    train(VAE, run)
    return run


def unlabelled(run: Path) -> Path:
    """A UNet on a folder of pictures without subfolders."""
    for i in range(20):
        picture(run.parent / "pictures" / f"{i:02d}.png", seed=i)
    train(dataclasses.replace(LABELLED, data=DataConfig(str(run.parent / "pictures"))), run)
    return run


@contextmanager
def without_pictures():
    """Where pictures of samples are not the matter they are black: drawing takes longer than training."""

    def black(run, n, **options):
        return torch.zeros(n, *run.shape, dtype=torch.uint8), None

    with patch.object(Run, "sample", black):
        yield


def picture(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> Path:
    """Writes a grey picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)).save(path)
    return path


def truncate(path: Path) -> Path:
    """Leaves half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def flip_a_byte(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path
