"""What is no image is trained and drawn by the same functions: waveforms, and the rows of a table."""

import pytest
import torch

from fastgen import Diffusion, DiffusionObjective, UNet, train_step
from fastgen.diffusion.samplers import ddpm, euler, uniform_times
from fastgen.functional import noise_key, philox_normal

pytestmark = pytest.mark.slow

LENGTH = 32


def fitted(net, x0, steps, lr=3e-3, batch=32):
    """A denoiser of x0 (n, C, L), trained for some steps."""
    diffusion = Diffusion("rectified_flow")
    objective, optimizer = DiffusionObjective(net, diffusion), torch.optim.AdamW(net.parameters(), lr, (0.9, 0.99), fused=True)
    rows = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        x = x0[torch.randint(len(x0), (batch,), generator=rows)]
        train_step(objective, optimizer, x, None, noise_key(0, step=step, samples=batch), clip=1.0)
    return diffusion.denoiser(net.eval())


@torch.no_grad()
def drawn(denoise, n, shape, sampler=euler, steps=25):
    key = noise_key(1, samples=n)
    return sampler(denoise, philox_normal((n, *shape), key), uniform_times(steps), key=key)


def waves(n):
    """A sine of 3 or of 5 periods at any phase."""
    generator = torch.Generator().manual_seed(1)
    periods = torch.tensor([3.0, 5.0])[torch.randint(2, (n, 1), generator=generator)]
    phase = torch.rand(n, 1, generator=generator) * 2 * torch.pi
    return (2 * torch.pi * periods * torch.arange(LENGTH) / LENGTH + phase).sin()[:, None]


def test_waveforms_have_the_datas_spectrum():
    torch.manual_seed(0)
    net = UNet(1, dims=1, channels=16, multipliers=(1, 2), blocks=1, groups=4, head_dim=16)
    out = drawn(fitted(net, waves(2000), 200), 200, (1, LENGTH))
    power = torch.fft.rfft(out[:, 0]).abs().square()
    share = power / power.sum(1, keepdim=True)
    print(share.mean(0), share.max(1).values.median())
    assert share.mean(0)[[3, 5]].sum() > 0.85  # of white noise: 2 of 17
    assert share.mean(0)[[3, 5]].min() > 0.25
    assert share.max(1).values.median() > 0.85  # each has one of the two, not a mixture
    assert out.square().mean() == pytest.approx(0.5, rel=0.15)


def test_rows_of_a_table_have_the_datas_correlations():
    sklearn = pytest.importorskip("sklearn.datasets")
    table = torch.tensor(sklearn.load_wine().data, dtype=torch.float32)
    x0 = ((table - table.mean(0)) / table.std(0))[:, :, None]  # 13 features are the channels of a signal of length 1
    torch.manual_seed(0)
    net = UNet(13, dims=1, channels=64, multipliers=(1,), blocks=2, groups=8, mid_attention=False)
    out = drawn(fitted(net, x0, 300, lr=2e-3), 500, (13, 1), ddpm, steps=50)[..., 0]
    expected, correlations = x0[..., 0].T.corrcoef(), out.T.corrcoef()
    error = (correlations - expected).norm() / (expected - torch.eye(13)).norm()
    print(error, out.mean(0).abs().max(), out.std(0))
    assert error < 0.35  # 1 where there are none
    assert out.mean(0).abs().max() < 0.3
    assert (out.std(0) - 1).abs().max() < 0.3
