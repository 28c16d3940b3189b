"""Somebody's own UNet of nn.GroupNorm and nn.SiLU, trained by a loop of their own, faster by one line.

    python examples/own_unet.py --steps 200

It trains flow matching on scikit-learn's digits and draws some.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastgen
from fastgen.files.images import save_images
from fastgen.pixels import signed_to_uint8


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time)))."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(8, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.time = nn.Linear(128, cout)
        self.conv2 = nn.Sequential(nn.GroupNorm(8, cout), nn.SiLU(), nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(x) + self.time(emb)[:, :, None, None]
        return self.skip(x) + self.conv2(h)


class OwnUNet(nn.Module):
    """8x8 and 4x4."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.down1 = ResBlock(width, width)
        self.down2 = ResBlock(width, 2 * width)
        self.mid = ResBlock(2 * width, 2 * width)
        self.up = ResBlock(3 * width, width)
        self.head = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = 1000 * t[:, None] * torch.logspace(0, -4, 32, device=t.device)
        emb = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        skip = self.down1(self.stem(x), emb)
        h = self.mid(self.down2(F.avg_pool2d(skip, 2), emb), emb)
        return self.head(self.up(torch.cat([F.interpolate(h, scale_factor=2.0), skip], dim=1), emb))


@dataclass(frozen=True)
class Options:
    """Train a UNet of one's own on the digits."""

    steps: int = 500
    batch_size: int = 64
    lr: float = 2e-3
    out: Path = Path("runs/own_unet.png")
    """The digits that it draws."""


def main(options: Options) -> None:
    """Trains, and writes a picture of samples."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32, device=device)[:, None]
    model = OwnUNet().to(device)
    print(fastgen.optimize(model))  # the one line

    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    for step in range(options.steps):
        x0 = digits[torch.randint(len(digits), (options.batch_size,), device=device)]
        noise, t = torch.randn_like(x0), torch.rand(len(x0), device=device)
        x = torch.lerp(x0, noise, t[:, None, None, None])
        loss = F.mse_loss(model(x, t), noise - x0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    with torch.no_grad():
        x = torch.randn(64, 1, 8, 8, device=device)
        for i in range(50, 0, -1):
            x = x - model(x, torch.full((64,), i / 50, device=device)) / 50
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_images(options.out, signed_to_uint8(x).cpu(), None)
    print(options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
