"""Configurations of training runs: frozen dataclasses, free of torch, so that the command line answers at once.

Each raises ValueError, naming the setting, for a value out of range, and TrainConfig for settings that exclude each other. The
docstrings of classes and fields are the command line's help.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from fastgen.config.names import PredictionName, ScheduleName, TimeDrawName, WeightingName
from fastgen.config.types import expect_types
from fastgen.errors import expect


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    source: str = ""
    """"mnist", "digits", a folder of images or one that save_to_disk of Hugging Face's datasets wrote, a .npy or .npz file, or a
    table: a .csv or .parquet, "wine" or "breast_cancer"."""
    kind: Literal["auto", "images", "values"] = "auto"
    """What arrays are read as. auto: floats of shape (N, F) as values, the rows of a table, and all others as images; values may
    also be signals (N, C, L)."""
    size: int | None = None
    """Side in pixels to which images are cropped and resized."""
    channels: int | None = None
    """1 for grey, 3 for colour; as the images are when not given."""
    flip: bool = False
    """Mirror images at random."""
    shift: int = 0
    """Shift images at random by up to this many pixels."""
    workers: int | None = None
    """Processes that read images where they do not fit in memory."""
    hold_out: float = 0.0
    """Share of data without a test split that is held out from training, so that its loss is logged."""
    label: str = ""
    """Of a .csv or .parquet, the column of the classes."""
    exclude: tuple[str, ...] = ()
    """Columns that are left out, such as names and free text."""
    categories: tuple[str, ...] = ()
    """Columns whose values are names of categories, though they are numbers, or text that hardly repeats."""
    missing: Literal["keep", "refuse"] = "keep"
    """Whether rows may have missing values, which samples then have, too."""

    def __post_init__(self):
        expect_types(self, "data.")
        expect("data.hold_out", self.hold_out, 0 <= self.hold_out <= 0.5, "a share from 0 to 0.5")
        expect("data.size", self.size, self.size is None or self.size >= 1, "a number of pixels >= 1")
        expect("data.channels", self.channels, self.channels in (None, 1, 3), "1 or 3")
        expect("data.shift", self.shift, self.shift >= 0, "a number of pixels >= 0")
        expect("data.workers", self.workers, self.workers is None or self.workers >= 0, "a number >= 0")


@dataclass(frozen=True)
class UNetConfig:
    """The UNet."""

    channels: int = 128
    """Width of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Width of each level over the first."""
    blocks: int = 2
    """Residual blocks per level."""
    attention_levels: tuple[int, ...] = (1,)
    """Levels (0 is the first) whose blocks attend."""
    head_dim: int = 64
    """Channels of an attention head."""
    groups: int = 32
    """Groups of every GroupNorm."""
    patch: int = 1
    """Side of the pixel-unshuffle at the stem."""
    dropout: float = 0.0
    checkpointing: bool = False
    """Recompute blocks in backward: less memory, more time."""

    def __post_init__(self):
        expect_types(self, "model.")
        _expect_levels(self)
        for name in ("head_dim", "patch"):
            expect(f"model.{name}", getattr(self, name), getattr(self, name) >= 1, "a number >= 1")
        expect("model.attention_levels", self.attention_levels, min(self.attention_levels, default=0) >= 0, "levels >= 0")
        expect("model.dropout", self.dropout, 0 <= self.dropout < 1, "a number in [0, 1)")


@dataclass(frozen=True)
class VAEConfig:
    """The MLP VAE."""

    latent_dim: int = 16
    """Length of the latent vector."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    std: float = 1.0
    """Deviation of the gaussian likelihood."""
    beta: float = 1.0
    """Weight of the KL term in the loss; 1 is the ELBO's."""
    kl_warmup: int = 0
    """Steps in which that weight rises from 0."""

    def __post_init__(self):
        expect_types(self, "model.")
        expect("model.beta", self.beta, 0 <= self.beta < math.inf, "a finite number >= 0")
        expect("model.kl_warmup", self.kl_warmup, self.kl_warmup >= 0, "a whole number >= 0")
        expect("model.latent_dim", self.latent_dim, self.latent_dim >= 1, "a number >= 1")
        expect("model.std", self.std, self.std > 0 and math.isfinite(self.std), "a finite number > 0")


@dataclass(frozen=True)
class ConvVAEConfig(VAEConfig):
    """The convolutional VAE."""

    channels: int = 32
    """Width of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Width of each level over the first."""
    blocks: int = 1
    """Residual blocks per level."""
    groups: int = 8
    """Groups of every GroupNorm."""

    def __post_init__(self):
        super().__post_init__()
        _expect_levels(self)


def _expect_levels(model: UNetConfig | ConvVAEConfig) -> None:
    for name in ("channels", "blocks", "groups"):
        expect(f"model.{name}", getattr(model, name), getattr(model, name) >= 1, "a number >= 1")
    expect("model.multipliers", model.multipliers, model.multipliers and min(model.multipliers) >= 1, "numbers >= 1")


@dataclass(frozen=True)
class DiffusersConfig:
    """A UNet of diffusers, which --init-from gives."""

    unet: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Its config.json."""
    scheduler: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
    """Its scheduler_config.json; what the settings of diffusion make one of when not given."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process, and how the loss is made of it."""

    schedule: Literal[ScheduleName, "diffusers"] = "rectified_flow"
    """diffusers: that of the scheduler which --init-from gave."""
    prediction: PredictionName = "flow"
    weighting: WeightingName = "uniform"
    times: TimeDrawName = "uniform"
    """How t is drawn in training."""
    loss: Literal["mse", "l1", "huber", "charbonnier"] = "mse"
    label_dropout: float = 0.1
    """Share of samples trained without their label, for guidance."""
    condition: Literal["none", "low_resolution", "hole"] = "none"
    """What the UNet sees of each image beside its noise: none, for drawing; a smaller copy, for fastgen upscale; all but a hole,
    for fastgen inpaint."""
    factor: int = 4
    """How many times smaller the copy of low_resolution is."""

    def __post_init__(self):
        expect_types(self, "diffusion.")
        expect("diffusion.factor", self.factor, self.factor >= 2, "a whole number >= 2")
        expect("diffusion.label_dropout", self.label_dropout, 0 <= self.label_dropout <= 1, "a number in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """All of a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: UNetConfig | VAEConfig | ConvVAEConfig | DiffusersConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig | None = field(default_factory=DiffusionConfig)
    """What the UNet is trained for; none for a VAE."""

    steps: int = 100_000
    """Optimizer steps in all; the learning rate depends on the step alone."""
    batch_size: int = 128
    """Samples per optimizer step, over all ranks."""
    accumulation: int = 1
    """Parts that a batch is computed in, for less memory."""
    lr: float = 2e-4
    """Learning rate after warm-up."""
    lr_decay: Literal["cosine", "constant"] = "cosine"
    """To 0 at the last step, or not at all."""
    warmup: int = 500
    """Steps in which the learning rate rises from 0; the command line makes it a tenth of `steps` where it begins a run
    of no more steps."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient; 0 to leave it."""
    ema: float = 0.9999
    """Decay of the weights' moving average, which samples are drawn with; it warms up as (1 + step) / (10 + step)."""

    precision: Literal["auto", "fp32", "bf16", "bf16_weights", "fp16"] = "auto"
    """auto: bf16 autocast where the processor or GPU computes in it, fp16 with scaled gradients on other GPUs. bf16_weights: bf16
    autocast of a model in bf16, whose weights are rounded from fp32 ones that the optimizer keeps, so that nothing is cast to
    compute with it. Gradients are then bf16, also summed over accumulation's parts and over ranks. What is saved is fp32."""
    device: str = "auto"
    """auto: cuda where there is one, else mps where it computes what is needed, else cpu."""
    compile: bool = False
    """Compile the objective with torch.compile: a minute before the first step."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Launch a whole step as one CUDA graph. auto: on a GPU, in one process, where nothing stands against it."""
    shard: bool = False
    """Under torchrun, shard weights, gradients, optimizer and average over the ranks (FSDP2), instead of copying them (DDP)."""
    rank_timeout: float = 10.0
    """Under torchrun, minutes for which a rank may be silent, because it was stopped or its machine is gone; then training ends
    with a line that names it. A rank that draws samples, writes or compiles is not silent."""
    threads: int | None = None
    """Processor threads, at most one a core; torch's choice when not given. Small models are faster with few."""
    seed: int = 0
    max_minutes: float | None = None
    """Stop and save after this time; --resume goes on."""

    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    log_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Where metrics and sample grids go, too: to TensorBoard, in the run's folder tensorboard, or to Weights & Biases."""
    sample_every: int = 5_000
    """Steps between sample grids."""
    checkpoint_every: int = 5_000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept, the last ones."""

    def __post_init__(self):
        expect_types(self)
        for name in ("steps", "batch_size", "accumulation", "log_every", "sample_every", "checkpoint_every", "keep"):
            expect(name, getattr(self, name), getattr(self, name) >= 1, "a whole number >= 1")
        for name in ("warmup", "seed"):
            expect(name, getattr(self, name), 0 <= getattr(self, name) < 2**63, "a whole number >= 0")
        for name in ("weight_decay", "clip"):
            expect(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a finite number >= 0")
        expect("lr", self.lr, 0 < self.lr < math.inf, "a finite number > 0")
        expect("betas", self.betas, all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        expect("ema", self.ema, 0 <= self.ema < 1, "a number in [0, 1)")
        expect("threads", self.threads, self.threads is None or self.threads >= 1, "a whole number >= 1")
        expect("rank_timeout", self.rank_timeout, 0 < self.rank_timeout < math.inf, "minutes > 0")
        expect("max_minutes", self.max_minutes, self.max_minutes is None or self.max_minutes > 0, "minutes > 0")
        expect(
            "accumulation",
            self.accumulation,
            self.batch_size % self.accumulation == 0,
            f"a divisor of batch_size {self.batch_size}",
        )
        expect(
            "diffusion",
            self.diffusion,
            (self.diffusion is None) == isinstance(self.model, VAEConfig),
            "settings for a UNet and none for a VAE",
        )
        if self.diffusion is not None:
            plain = isinstance(self.model, UNetConfig) or self.diffusion.condition == "none"
            expect("diffusion.condition", self.diffusion.condition, plain, "none for a UNet of diffusers")
            given = isinstance(self.model, DiffusersConfig) and self.model.scheduler is not None
            expected = "diffusers, for its scheduler" if given else "another than diffusers without --init-from's scheduler"
            expect("diffusion.schedule", self.diffusion.schedule, (self.diffusion.schedule == "diffusers") == given, expected)
