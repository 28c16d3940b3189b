"""The kernels of group_norm on values that are hard to normalize: large means, groups of one value, infinities and NaN."""

import pytest
import torch
import triton
import triton.language as tl

from fastgen_kernels.arithmetic_triton import reciprocal_deviation
from fastgen_kernels.group_norm import _group_norm
from proof.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from proof.laboratory.device import DEVICE
from proof.laboratory.tensors import random
from tests.helpers.group_norm_problems import ALGORITHMS, doubled, force, inputs, op, reference

pytestmark = pytest.mark.kernels


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


@pytest.mark.kill
def test_large_mean(algorithm):
    """Mean 1e6, deviation 1: what subtracting the mean leaves is exact to fp32, forward and backward."""
    x, *options = inputs((2, 8, 6, 5), options=("weight", "bias"))
    x = (x.detach() + 1e6).requires_grad_()
    assert_exact_to_fp32(x, *options, 2)


@pytest.mark.kill
def test_large_mean_with_pre_bias(algorithm):
    """Their sum, of multiples of 2^-10 below 2^14, is exact, while the mean less the pre_bias is not."""
    x, *options = inputs((2, 8, 6, 5), options=("weight", "bias", "pre_bias"))
    x, options[4] = (
        ((v.detach() + mean) * 1024).round().div(1024).requires_grad_() for v, mean in ((x, 8290), (options[4], -100))
    )
    assert_exact_to_fp32(x, *options, 2)


def assert_exact_to_fp32(*given):
    """Returns the results and the exact ones, by their names."""
    ours, exact = results(op, *given, None), results(reference, *doubled(given[:-1]), given[-1], None)
    for name, truth in exact.items():
        assert (ours[name] - truth).abs().max() <= 1e-6 * truth.abs().max(), name
    return ours, exact


@pytest.mark.kill
def test_the_first_part_far_out(monkeypatch):
    """Its mean is what the others are merged with, while the group's is almost 0."""
    force(monkeypatch, "split", tile=16)
    x, *options = (None if x is None else x.detach() for x in inputs((1, 4, 16, 8), options=("weight", "bias")))
    x[:, :, 0] += 1e3
    assert_as_accurate(op, reference, x, *options, 2, None)


@pytest.mark.parametrize(
    ("tile", "mean"),
    [
        pytest.param("first", 0, marks=pytest.mark.kill),
        ("first", 1e4),
        ("middle", 0),
        ("channels", 1e4),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
def test_a_tile_far_out(monkeypatch, algorithm, tile, mean):
    """One tile of 64, or 8 channels of the 16 of a group, a thousand deviations from the others. What lies far out is what the
    others are merged with, or what is merged with them."""
    force(monkeypatch, algorithm, tile=32)
    x, *options = inputs((1, 32, 128), layout="channels_last", options=("weight", "bias"))
    x = x.detach() + mean
    far = {"first": x[:, :, :2], "middle": x[:, :, 64:66], "channels": x[:, :8]}
    far[tile] += 1e3
    given = x.requires_grad_(), *options, 2
    ours, exact = assert_exact_to_fp32(*given)
    for name, peer in results(reference, *given, None).items():
        assert_accurate(ours[name], peer, exact[name], name, cancels=True)


@pytest.mark.kill
def test_exact_to_fp64(algorithm):
    """Where a step of the arithmetic is in fp32, 1e-8 is lost."""
    given = *inputs((2, 16, 8, 8), torch.float64, "channels_last"), 4
    torch.testing.assert_close(results(op, *given), results(reference, *given), rtol=1e-12, atol=1e-12)


@pytest.mark.kill
def test_mean_of_parts(monkeypatch):
    """Held in two numbers it is exact beyond fp32, also where the first part, with which the others are merged, lies far out."""
    force(monkeypatch, "split", tile=32)
    x = random((1, 32, 64), layout="channels_last")
    x[:, :, :2] += 1e3
    statistics = _group_norm(x, *[None] * 6, 2, 1e-5, None)[2].double()
    group = x.double().reshape(1, 2, -1)
    assert ((statistics[..., 0] + statistics[..., 1] - group.mean(2)).abs() <= 5e-8 * group.std(2)).all()


def test_means_that_drift(algorithm):
    """Each channel, and each half of the positions, with a mean of its own, far from the first one's."""
    x, *options = inputs((2, 16, 6, 7), options=("weight", "bias"))
    offsets = torch.linspace(-3e3, 5e3, 16, device=DEVICE).view(16, 1, 1) + torch.linspace(0, 300, 6, device=DEVICE).view(6, 1)
    x = (x.detach() + offsets).requires_grad_()
    assert_as_accurate(op, reference, x, *options, 8, None)


def test_one_value_far_out(algorithm):
    """The first element, which a sum relative to it would suffer from."""
    x, *options = inputs((2, 4, 20, 7), options=("weight", "bias"))
    with torch.no_grad():
        x[:, :, 0, 0] = 1e4
    assert_as_accurate(op, reference, x, *options, 2, None)


@pytest.mark.kill
def test_small_values(algorithm):
    """Beside which a 1 that does not belong to them would be large."""
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    assert_as_accurate(op, reference, (1e-3 * x.detach()).requires_grad_(), *options, 2, None)


def test_a_constant_group(algorithm):
    """Deviation 0: what is left is rounding, beside eps."""
    for value in (0.0, 1.0, 1e4):
        x = torch.full((2, 6, 5, 3), value, device=DEVICE)
        y = op(x, None, None, None, None, None, None, 3, None)
        assert y.abs().max() <= 1e-4 * value


@triton.jit
def reciprocal_deviations(var_ptr, out_ptr, eps: tl.float64):
    i = tl.arange(0, 4)
    tl.store(out_ptr + i, reciprocal_deviation(tl.load(var_ptr + i), eps, tl.float32))


@pytest.mark.kill
def test_a_variance_below_0_is_0_and_nan_stays():
    var = torch.tensor([-0.5, 0.0, 3.0, torch.nan], device=DEVICE)
    out = torch.empty_like(var)
    reciprocal_deviations[(1,)](var, out, 1.0)
    torch.testing.assert_close(out, torch.tensor([1.0, 1.0, 0.5, torch.nan], device=DEVICE), equal_nan=True)


def test_large_values_in_fp16(algorithm):
    x, *options = inputs((2, 8, 5, 7), torch.float16, options=("weight", "bias"))
    assert_as_accurate(op, reference, (300 * x.detach()).requires_grad_(), *options, 2)


@pytest.mark.parametrize(
    ("layout", "value"), [("contiguous", torch.inf), pytest.param("channels_last", torch.nan, marks=pytest.mark.kill)]
)
def test_nan_stays_in_its_group(algorithm, layout, value):
    x, *options = inputs((3, 6, 5, 3), layout=layout, options=("weight", "bias", "scale", "shift", "pre_bias"))
    with torch.no_grad():
        x[1, 2, 4, 1] = value
    ours = results(op, x, *options, 3)
    for name in ("output 0", "gradient of input 0"):
        spoiled = ours[name].isnan()
        assert spoiled[1, 2:4].all()
        assert spoiled.sum() == spoiled[1, 2:4].numel()
