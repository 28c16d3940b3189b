"""Looking at a model on the way: a picture of samples, and its loss on data held out from training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen import noise_streams
from fastgen.config.sampling import Sampling
from fastgen.config.schema import TrainConfig
from fastgen.data import SampleDataset
from fastgen.data.units import Values
from fastgen.diffusion.denoiser import null_label
from fastgen.diffusion.samplers import generate
from fastgen.files.images import save_grid
from fastgen.files.plots import SIGNALS, plot_values
from fastgen.functional import noise_key
from fastgen.models import VariationalAutoencoder
from fastgen.pixels import signed_to_uint8, uint8_to_signed, unit_to_uint8
from fastgen.runs.run import Run, make_diffusion

ROWS = 8
GUIDANCE = 1.25
ROWS_OF_A_TABLE = 500


@dataclass(frozen=True)
class Preview:
    """preview(step) writes what `model` (the averaged weights) makes at a step into `folder`, and returns that step's metrics."""

    config: TrainConfig
    folder: Path
    model: nn.Module
    objective: nn.Module
    data: SampleDataset
    held_out: SampleDataset | None
    device: torch.device
    values: Values | None = None

    def __call__(self, step: int) -> dict[str, float]:
        path = self.folder / f"{step:08d}.png"
        run = Run(
            self.folder.parent,
            self.config,
            self.model,
            make_diffusion(self.config),
            self.data.shape,
            self.data.classes,
            step,
            self.device,
            self.values,
        )
        if self.values is not None:
            save_values_drawn(path, run, self.data)
        elif run.condition is None:
            save_samples(path, run)
        else:
            save_conditioned(path, run, self._images())
        if isinstance(self.model, VariationalAutoencoder):
            save_reconstructions(path.with_stem(f"{path.stem}-reconstructed"), self.model, self._images())
        if self.held_out is None:
            return {}
        return {"held_out_loss": held_out_loss(self.objective, self.held_out, self.device, self.config.seed)}

    def _images(self) -> Tensor:
        """Four rows of images, held out from training where some are."""
        unseen = self.data if self.held_out is None else self.held_out
        return next(unseen.batches(4 * ROWS, device=self.device, workers=0))[0]


def save_samples(path: Path, run: Run) -> None:
    """A grid of samples, the same noise every time: a column a class where there are at most 16, else 8 by 8."""
    columns = run.num_classes if run.num_classes is not None and run.num_classes <= 16 else ROWS
    images, _ = run.sample(ROWS * columns, batch_size=ROWS * columns, guidance=1.0 if null_label(run.model) is None else GUIDANCE)
    save_grid(path, images, columns)


def save_values_drawn(path: Path, run: Run, data: SampleDataset) -> None:
    """A picture of 500 rows or 6 signals of the training split, or all, and of as many drawn ones with the same labels, of the
    same noise every time; data: as the network sees them."""
    assert run.values is not None
    n = min(len(data), ROWS_OF_A_TABLE if len(run.shape) == 1 else SIGNALS)
    real, labels = next(data.batches(n, device=run.device, workers=0))
    drawn, _ = run.sample(n, label=None if labels is None else labels.tolist(), batch_size=n)
    plot_values(path, real.cpu(), run.values.to_network(drawn), None if labels is None else labels.cpu())


@torch.no_grad()
def save_conditioned(path: Path, run: Run, images: Tensor) -> None:
    """What a model with a condition sees of images in rows of eight, each row above what the model makes of it; images: uint8
    (N, C, H, W), N a multiple of 8."""
    assert run.condition is not None
    key = noise_key(0, noise_streams.CONDITION, 0, len(images), images.device)
    seen = run.condition(uint8_to_signed(images), key)
    with run.autocast():
        made = signed_to_uint8(generate(run.denoiser(beside=seen), run.shape, key, Sampling()))
    rows = torch.stack([signed_to_uint8(seen[:, : run.shape[0]]).unflatten(0, (-1, ROWS)), made.unflatten(0, (-1, ROWS))], dim=1)
    save_grid(path, rows.flatten(0, 2), columns=ROWS)


@torch.no_grad()
def save_reconstructions(path: Path, vae: VariationalAutoencoder, images: Tensor) -> None:
    """Images in rows of eight, each row above what the VAE makes of it; images: uint8 (N, C, H, W), N a multiple of 8."""
    decoded = unit_to_uint8(vae.decode(vae.encode(images)[0])).view_as(images)
    rows = torch.stack([images.unflatten(0, (-1, ROWS)), decoded.unflatten(0, (-1, ROWS))], dim=1)
    save_grid(path, rows.flatten(0, 2), columns=ROWS)


@torch.no_grad()
def held_out_loss(objective: nn.Module, data: SampleDataset, device: torch.device, seed: int, most: int = 2_000) -> float:
    """The mean loss in fp32 over the held-out images, the first `most` of them, with the same noise every time."""
    n, size = min(len(data), most), 250
    batches = data.batches(size, device=device, workers=0)
    total = 0.0
    for start in range(0, n, size):
        (image, label), count = next(batches), min(size, n - start)
        key = noise_key(seed, noise_streams.NOISE, 0, range(start, start + count), device)
        total += objective(image[:count], None if label is None else label[:count], key=key).sum().item()
    return total / n
