"""Looking at a model while it is trained: a picture of samples, and its loss on held-out data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen import noise_streams
from fastgen.config.sampling import Sampling
from fastgen.config.schema import TrainConfig
from fastgen.data import SampleDataset
from fastgen.data.units import Values
from fastgen.diffusion.samplers import generate
from fastgen.files.images import save_grid
from fastgen.files.plots import SIGNALS, plot_values
from fastgen.functional import noise_key
from fastgen.models import VariationalAutoencoder
from fastgen.pixels import signed_to_uint8, uint8_to_signed, unit_to_uint8
from fastgen.runs.run import Run, make_diffusion

COLUMNS = 8
GUIDANCE = 1.25
TABLE_ROWS = 500


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
        metrics: dict[str, float] = {}
        if isinstance(self.model, VariationalAutoencoder):
            save_reconstructions(path.with_stem(f"{path.stem}-reconstructed"), self.model, self._images())
            metrics["kl"] = mean_kl(self.model, self._images(), self.config.seed)
        if self.held_out is not None:
            metrics["held_out_loss"] = held_out_loss(self.objective, self.held_out, self.device, self.config.seed)
        return metrics

    def _images(self) -> Tensor:
        """Four rows of images, held out from training where some are."""
        unseen = self.data if self.held_out is None else self.held_out
        return next(unseen.batches(4 * COLUMNS, device=self.device, workers=0))[0]


def save_samples(path: Path, run: Run) -> None:
    """A picture of samples, of the same noise every time: a column for each class where there are at most 16, else 8 by 8."""
    columns = run.num_classes if run.num_classes is not None and run.num_classes <= 16 else COLUMNS
    n, guidance = COLUMNS * columns, GUIDANCE if run.knows_null_label else 1.0
    images, _ = run.sample(n, batch_size=n, guidance=guidance, progress=False)
    save_grid(path, images, columns)


def save_values_drawn(path: Path, run: Run, data: SampleDataset) -> None:
    """A picture of 500 rows of a table or 6 signals of the training split, or all where there are fewer, and of as many samples
    with the same labels, of the same noise every time. data: as the network sees them."""
    assert run.values is not None
    n = min(len(data), TABLE_ROWS if len(run.shape) == 1 else SIGNALS)
    real, labels = next(data.batches(n, device=run.device, workers=0))
    drawn, _ = run.sample(n, label=None if labels is None else labels.tolist(), batch_size=n, progress=False)
    plot_values(path, real.cpu(), run.values.to_network(drawn), None if labels is None else labels.cpu())


@torch.no_grad()
def save_conditioned(path: Path, run: Run, images: Tensor) -> None:
    """A picture of the condition that the model is given of each image, in rows of eight, each above a row of the samples that it
    draws under it. images: uint8 (N, C, H, W), N a multiple of 8."""
    assert run.condition is not None
    key = noise_key(0, noise_streams.CONDITION, 0, len(images), images.device)
    seen = run.condition(uint8_to_signed(images), key)
    with run.autocast():
        made = signed_to_uint8(generate(run.denoiser(beside=seen), run.shape, key, Sampling()))
    save_pairs_of_rows(path, signed_to_uint8(seen[:, : run.shape[0]]), made)


@torch.no_grad()
def save_reconstructions(path: Path, vae: VariationalAutoencoder, images: Tensor) -> None:
    """A picture of images in rows of eight, each above a row of their reconstructions by the VAE. images: uint8 (N, C, H, W), N a
    multiple of 8."""
    decoded = unit_to_uint8(vae.reconstruct(images))
    save_pairs_of_rows(path, images, decoded)


def save_pairs_of_rows(path: Path, upper: Tensor, lower: Tensor) -> None:
    """A grid of rows of eight, each of `upper` above its counterpart of `lower`: uint8 (N, C, H, W), N a multiple of 8."""
    rows = torch.stack([images.unflatten(0, (-1, COLUMNS)) for images in (upper, lower)], dim=1)
    save_grid(path, rows.flatten(0, 2), columns=COLUMNS)


@torch.no_grad()
def mean_kl(vae: VariationalAutoencoder, images: Tensor, seed: int) -> float:
    """The mean KL term of images in nats, unweighted: near 0 the posterior has collapsed."""
    key = noise_key(seed, noise_streams.NOISE, 0, len(images), images.device)
    return vae.elbo_terms(images, key=key)[1].mean().item()


@torch.no_grad()
def held_out_loss(objective: nn.Module, data: SampleDataset, device: torch.device, seed: int, most: int = 2_000) -> float:
    """The mean loss over the held-out images, in fp32, with the same noise every time. most: how many images are used."""
    n, size = min(len(data), most), 250
    batches = data.batches(size, device=device, workers=0)
    total = 0.0
    for start in range(0, n, size):
        (image, label), count = next(batches), min(size, n - start)
        key = noise_key(seed, noise_streams.NOISE, 0, range(start, start + count), device)
        total += objective(image[:count], None if label is None else label[:count], key=key).sum().item()
    return total / n
