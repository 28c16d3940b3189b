"""What `fastgen train PRESET` can be given: one table."""

from dataclasses import replace

from fastgen.config.schema import DataConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig

PRESETS: dict[str, TrainConfig] = {
    "mnist": TrainConfig(
        data=DataConfig("mnist"),
        model=UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention_levels=(), head_dim=32, groups=8, patch=2),
        diffusion=DiffusionConfig(times="logit_normal"),
        steps=2_400,
        batch_size=32,
        lr=3e-3,
        warmup=50,
        ema=0.99,
        threads=2,
        sample_every=1_200,
        checkpoint_every=1_200,
    ),
    "mnist-vae": TrainConfig(
        data=DataConfig("mnist", shift=1),
        model=VAEConfig(latent_dim=16),
        diffusion=None,
        steps=8_000,
        batch_size=128,
        lr=1e-3,
        warmup=100,
        ema=0.99,
        clip=0.0,
        threads=1,
        log_every=100,
        sample_every=2_000,
        checkpoint_every=2_000,
    ),
    "digits": TrainConfig(
        data=DataConfig("digits"),
        model=UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention_levels=(), head_dim=32, groups=8),
        steps=1_500,
        batch_size=32,
        lr=3e-3,
        warmup=50,
        ema=0.99,
        threads=1,
        sample_every=500,
        checkpoint_every=500,
    ),
    "wine": TrainConfig(
        data=DataConfig("wine"),
        model=UNetConfig(channels=64, multipliers=(1,), blocks=1, attention_levels=(), groups=8, dropout=0.1),
        steps=1_000,
        batch_size=64,
        lr=2e-3,
        warmup=50,
        ema=0.99,
        threads=1,
        sample_every=500,
        checkpoint_every=500,
    ),
    "table": TrainConfig(
        data=DataConfig(hold_out=0.05),
        model=UNetConfig(channels=64, multipliers=(1,), blocks=2, attention_levels=(), groups=8),
        steps=4_000,
        batch_size=128,
        lr=1e-3,
        warmup=100,
        ema=0.999,
        threads=1,
        log_every=100,
        sample_every=1_000,
        checkpoint_every=1_000,
    ),
    "folder32": TrainConfig(
        data=DataConfig(size=32, flip=True, hold_out=0.05),
        model=UNetConfig(channels=128, multipliers=(1, 2, 2), blocks=2, attention_levels=(1,), dropout=0.1),
    ),
    "folder64": TrainConfig(
        data=DataConfig(size=64, flip=True, hold_out=0.05),
        model=UNetConfig(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention_levels=(2,), dropout=0.1),
    ),
    "folder32-laptop": TrainConfig(
        data=DataConfig(size=32, flip=True, hold_out=0.05),
        model=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_levels=(), head_dim=32, groups=8, patch=2),
        diffusion=DiffusionConfig(times="logit_normal"),
        steps=10_000,
        batch_size=32,
        lr=1e-3,
        warmup=100,
        ema=0.995,
        log_every=20,
        sample_every=500,
        checkpoint_every=500,
    ),
}

_LONGER = replace(PRESETS["mnist"], steps=2_600, sample_every=1_300, checkpoint_every=1_300)
# Half of the labels are left out in training, since one may or may not know what an image is of.
PRESETS |= {
    "mnist-upscale": replace(
        _LONGER, diffusion=DiffusionConfig(times="logit_normal", label_dropout=0.5, condition="low_resolution")
    ),
    "mnist-inpaint": replace(
        _LONGER, diffusion=DiffusionConfig(times="logit_normal", label_dropout=0.5, condition="hole")
    ),
}

DESCRIPTIONS = {
    "mnist": "a diffusion model of 28x28 digits, by class",
    "mnist-vae": "the MLP VAE on the same digits",
    "mnist-upscale": "super-resolution of digits from 7x7, for fastgen upscale",
    "mnist-inpaint": "filling holes in digits, for fastgen inpaint",
    "digits": "a diffusion model of 8x8 digits, in under a minute",
    "wine": "a diffusion model of a table of 178 rows and 13 columns",
    "table": "your table (--data.source FILE.csv or .parquet), on a CPU",
    "folder32": "your images (--data.source FOLDER) at 32x32, on a GPU",
    "folder64": "your images at 64x64, on a GPU",
    "folder32-laptop": "your images at 32x32, small enough for a CPU",
}
