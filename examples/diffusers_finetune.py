"""A training loop as people write it with diffusers, faster by one line.

    python examples/diffusers_finetune.py --images path/to/images --unet path/to/ddpm/unet --steps 10000
    python examples/diffusers_finetune.py --steps 200          # scikit-learn's digits and a small new UNet: a minute on a laptop

It needs diffusers. What it saves is what diffusers loads; fastgen is not needed for that.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel

import fastgen


@dataclass(frozen=True)
class Options:
    """Train a UNet2DModel to denoise images."""

    images: str = "digits"
    """A folder of images, or mnist or digits."""
    unet: Path | None = None
    """A UNet that diffusers saved; a small new one when not given."""
    out: Path = Path("runs/diffusers_finetune")
    """Where the pipeline is saved."""
    steps: int = 200
    batch_size: int = 64
    lr: float = 3e-4
    optimize: bool = True
    """--no-optimize leaves the one line out."""


def main(options: Options) -> None:
    """Trains, and saves a pipeline of diffusers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    data = fastgen.open_dataset(options.images)
    unet = small_unet(data.shape) if options.unet is None else UNet2DModel.from_pretrained(options.unet)
    unet.to(device)
    if options.optimize:
        print(fastgen.optimize(unet))  # the one line

    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), options.lr)
    warmup = get_cosine_schedule_with_warmup(optimizer, options.steps // 10, options.steps)
    ema = EMAModel(unet.parameters(), power=0.75)
    batches = data.batches(options.batch_size, device=device)

    for step in range(options.steps):
        images, _ = next(batches)
        clean = images.float() / 127.5 - 1
        noise = torch.randn_like(clean)
        t = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=device)
        with torch.autocast(device.type, torch.bfloat16):
            pred = unet(scheduler.add_noise(clean, noise, t), t).sample
        loss = F.mse_loss(pred.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    ema.copy_to(unet.parameters())
    DDPMPipeline(unet, scheduler).save_pretrained(options.out)
    print(options.out)


def small_unet(shape: tuple[int, ...]) -> UNet2DModel:
    """A UNet2DModel of 32 and 64 channels for images of a shape (C, H, W)."""
    channels, size, _ = shape
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
