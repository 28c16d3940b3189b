"""Averages by power functions against the weighted sums that they stand for."""

import pytest
import torch
from torch import nn

from fastgen.optim import AdamWEMA, Snapshot, coefficients, power, reconstruct
from fastgen.optim.profiles import gamma, sigma_rel

UPDATES, EVERY, ELEMENTS = 2048, 64, 16


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_width_of_an_exponent(width):
    """The standard deviation of tau / t under (gamma + 1) tau^gamma, integrated."""
    assert sigma_rel(gamma(width)) == pytest.approx(width)
    tau = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = (gamma(width) + 1) * tau ** gamma(width)
    mean, square = (torch.trapezoid(density * tau**k, tau) for k in (1, 2))
    assert float((square - mean**2).sqrt()) == pytest.approx(width, rel=1e-3)


def test_the_paper_s_widths():
    """EDM2, section 3.1: sigma_rel of 0.05 and 0.10 are gamma of about 16.97 and 6.94."""
    assert gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.fixture(scope="module")
def walk():
    """The weights of a random walk, (UPDATES, ELEMENTS), and what an optimizer that is led along it keeps: averages of three
    widths, and snapshots of the first two."""
    steps = torch.randn(UPDATES, ELEMENTS, generator=torch.Generator().manual_seed(0))
    path = steps.cumsum(0) / UPDATES**0.5
    tracked = {}
    snapshots = []
    for widths in ((0.05, 0.1), (0.075, 0.15)):
        parameter = nn.Parameter(path[0].clone(), requires_grad=False)
        model = nn.ParameterList([parameter])
        optimizer = AdamWEMA([parameter], ema=[power(width) for width in widths])
        for t, weights in enumerate(path, 1):
            parameter.copy_(weights)
            optimizer.step()
            if t % EVERY == 0 and widths == (0.05, 0.1):
                snapshots += [Snapshot(t, width, optimizer.ema_state_dict(model, i)) for i, width in enumerate(widths)]
        tracked |= {width: optimizer.ema_state_dict(model, i)["0"] for i, width in enumerate(widths)}
    return path, tracked, snapshots


@pytest.mark.parametrize("width", [0.05, 0.075, 0.1, 0.15])
def test_an_average_is_the_weighted_sum_of_all_weights(walk, width):
    path, tracked, _ = walk
    t = torch.arange(1, UPDATES + 1, dtype=torch.float64)
    decay = (1 - 1 / t) ** (gamma(width) + 1)
    later = torch.cat((decay.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.float64)))
    shares = (1 - decay) * later
    assert float(shares.sum()) == pytest.approx(1)
    torch.testing.assert_close(tracked[width].double(), shares @ path.double(), rtol=1e-4, atol=1e-5)
    density = (gamma(width) + 1) * (t / UPDATES) ** gamma(width) / UPDATES
    torch.testing.assert_close(shares, density, rtol=0, atol=0.02 * float(density.max()))


@pytest.mark.parametrize("width", [0.05, 0.075, 0.1, 0.15])
def test_reconstruction(walk, width):
    """Of the widths tracked, of one between and of one beyond, to a hundredth of the walk's spread."""
    path, tracked, snapshots = walk
    ours = reconstruct(snapshots, width)["0"]
    error = (ours - tracked[width]).square().mean().sqrt()
    assert error < 0.01 * path.std()
    others = [(tracked[other] - tracked[width]).square().mean().sqrt() for other in tracked if other != width]
    assert error < 0.2 * min(others)


def test_reconstruction_of_an_earlier_step(walk):
    path, _, snapshots = walk
    ours = reconstruct(snapshots, 0.1, updates=UPDATES // 2)["0"]
    kept = next(x.tensors["0"] for x in snapshots if x.updates == UPDATES // 2 and x.sigma_rel == 0.1)
    assert (ours - kept).square().mean().sqrt() < 1e-4 * path.std()


def test_coefficients():
    """A snapshot of the width and step that are wanted is taken alone; all else shares out what sums to about 1."""
    shares = coefficients([(500, 0.05), (1000, 0.05), (1000, 0.1)], 0.1, 1000)
    assert shares == pytest.approx([0, 0, 1], abs=1e-9)
    assert sum(coefficients([(t, width) for t in range(100, 1001, 100) for width in (0.05, 0.1)], 0.15, 1000)) == pytest.approx(
        1, abs=0.02
    )


def test_tensors_that_are_not_floating_are_the_last():
    snapshots = [Snapshot(t, 0.1, {"weight": torch.full((2,), float(t)), "count": torch.tensor(t)}) for t in (300, 100, 200)]
    assert reconstruct(snapshots, 0.1)["count"] == 300
    assert reconstruct(snapshots, 0.1, updates=250)["count"] == 200
    assert reconstruct(snapshots, 0.1)["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reconstruct([], 0.1), r"snapshots: expected at least one, got 0"),
        (lambda: reconstruct([Snapshot(8, 0.1, {})], 0.1, updates=4), "updates: expected a number from 8 on, .* got 4"),
        (lambda: reconstruct([Snapshot(8, 0.1, {"x": torch.ones(1)})], 0.0), "sigma_rel: expected a number between 0 and"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
