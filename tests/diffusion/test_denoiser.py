"""Guidance, on networks whose answers are known."""

import math

import pytest
import torch
from torch import nn

from fastgen import Diffusion, UNet, samplers
from fastgen.diffusion.denoiser import rescaling

X = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABEL, HALF = torch.tensor([3, 7]), torch.tensor(0.5)


class Conditional(nn.Module):
    """out = label + slope · x, -1 for the null label; remembers how many rows it was given at each call."""

    num_classes = 10

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope, self.rows = slope, []

    def forward(self, x, t, label=None, context=None):
        self.rows.append(len(x))
        out = torch.full((len(x),), -1.0) if label is None else torch.where(label == 10, -1.0, label.float())
        out = out if context is None else out + context.mean((1, 2))
        return out[:, None, None, None] + self.slope * x


def denoiser(net, **options):
    return Diffusion("cosine", "x0").denoiser(net, **options)


def first(x0):
    return x0[:, 0, 0, 0]


def test_it_extrapolates_from_the_null_label_in_one_forward():
    net = Conditional()
    x0 = denoiser(net, label=LABEL, guidance=2.5)(X, HALF)
    torch.testing.assert_close(first(x0), -1 + 2.5 * (LABEL + 1))
    assert net.rows == [4]


@pytest.mark.parametrize("options", [{}, {"negative_label": LABEL + 1}, {"guide": Conditional()}, {"interval": (0.2, 0.4)}])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_w_of_one_is_the_network_itself_bit_for_bit_in_one_forward_of_n(options, prediction):
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1, num_classes=10).eval()
    nn.init.normal_(net.head.weight)
    rows = []
    net.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    diffusion, x, t = Diffusion("cosine", prediction), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.7])
    _, c_skip, c_out = diffusion.preconditioning(t)
    expected = c_skip.view(-1, 1, 1, 1) * x + c_out.view(-1, 1, 1, 1) * net(x, t, LABEL)
    assert torch.equal(diffusion.denoiser(net, label=LABEL, guidance=1.0, **options)(x, t), expected)
    assert rows == [2, 2]


def test_a_negative_label_takes_the_place_of_the_null_label():
    net = Conditional()
    x0 = denoiser(net, label=LABEL, negative_label=torch.tensor([1, 2]), guidance=3.0)(X, HALF)
    torch.testing.assert_close(first(x0), torch.tensor([1 + 3.0 * 2, 2 + 3.0 * 5]))
    assert net.rows == [4]


def test_a_negative_context_takes_the_place_of_zeros():
    context = torch.full((2, 3, 4), 2.0)
    x0 = denoiser(Conditional(), context=context, guidance=3.0)(X, HALF)
    torch.testing.assert_close(first(x0), torch.tensor([-1 + 3.0 * 2] * 2))
    x0 = denoiser(Conditional(), context=context, negative_context=context / 4, guidance=3.0)(X, HALF)
    torch.testing.assert_close(first(x0), torch.tensor([-1 + 0.5 + 3.0 * 1.5] * 2))


def test_a_weaker_model_is_guided_away_from_under_the_same_label():
    net, weak = Conditional(1.0), Conditional(0.25)
    x0 = denoiser(net, label=LABEL, guide=weak, guidance=2.0)(X, HALF)
    expected = LABEL[:, None, None, None] + 0.25 * X + 2.0 * 0.75 * X
    torch.testing.assert_close(x0, expected)
    assert (net.rows, weak.rows) == ([2], [2])
    unlabelled = denoiser(net, guide=weak, guidance=2.0)(X, HALF)
    torch.testing.assert_close(unlabelled, -1 + 1.75 * X)


def test_an_interval_guides_inside_and_is_the_network_outside():
    denoise = denoiser(Conditional(), label=LABEL, guidance=2.5, interval=(0.25, 0.75))
    guided, plain = (-1 + 2.5 * (LABEL + 1.0)).tolist(), LABEL.float().tolist()
    for t, expected in ((0.2, plain), (0.25, plain), (0.26, guided), (0.75, guided), (0.76, plain), (1.0, plain)):
        assert first(denoise(X, torch.tensor(t))).tolist() == expected
    # Each sample by its own time.
    assert first(denoise(X, torch.tensor([0.1, 0.5]))).tolist() == [plain[0], guided[1]]


def test_the_weight_is_as_precise_as_t():
    x, t = X.double(), HALF.double()
    always = denoiser(Conditional(0.3), label=LABEL, guidance=1.1)(x, t)
    inside = denoiser(Conditional(0.3), label=LABEL, guidance=1.1, interval=(0.25, 0.75))(x, t)
    torch.testing.assert_close(inside, always, rtol=1e-12, atol=1e-12)


def test_an_interval_guides_the_steps_inside_it_alone():
    """The last of four steps has t = 1/4, which is outside of (1/4, 1], so what comes out is not guided at all."""
    denoise = denoiser(Conditional(), label=LABEL, guidance=5.0, interval=(0.25, 1.0))
    assert first(samplers.ddim(denoise, X, samplers.uniform_times(4))).tolist() == pytest.approx([3, 7], abs=1e-5)
    denoise = denoiser(Conditional(), label=LABEL, guidance=5.0, interval=(0.2, 1.0))
    assert first(samplers.ddim(denoise, X, samplers.uniform_times(4))).tolist() == pytest.approx([19, 39], abs=1e-4)


def test_rescaling_is_the_papers():
    """Section 3.4 of arXiv:2305.08891, with its w = 7.5 and phi = 0.7."""
    out, other = torch.randn(2, 4, 3, 5, 5)
    guided = other + 7.5 * (out - other)
    rescaled = guided * out.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    expected = 0.7 * rescaled + 0.3 * guided
    factor = rescaling(out, other, 7.5, 0.7)
    torch.testing.assert_close(guided * factor[:, None, None, None], expected)
    by_sample = rescaling(out, other, torch.tensor([7.5, 1.0, 7.5, 0.0]), 0.7)
    torch.testing.assert_close(by_sample[0::2], factor[0::2])
    torch.testing.assert_close(by_sample[1], torch.tensor(1.0))


def test_full_rescaling_gives_the_guided_output_the_deviation_of_the_networks():
    net, weak = Conditional(1.0), Conditional(0.25)
    x0 = denoiser(net, guide=weak, guidance=4.0, rescale=1.0)(X, HALF)
    torch.testing.assert_close(x0.flatten(1).std(1), (X - 1).flatten(1).std(1))
    assert not torch.allclose(x0, X - 1)
    flat = denoiser(Conditional(), label=LABEL, guidance=2.0, rescale=1.0)(X, HALF)  # no deviation: nothing to bring back
    torch.testing.assert_close(first(flat), -1 + 2.0 * (LABEL + 1))


def test_guidance_of_a_mixture_is_the_exact_tilted_posterior():
    """For N(±1, s²) under a label, the guided score is that of p(x|c)^w p(x)^(1-w) at each time: what samplers integrate."""
    diffusion, s, w = Diffusion("cosine", "x0"), 0.3, 1.5

    class Exact(nn.Module):
        num_classes = 2

        def forward(self, x, t, label, context=None):
            alpha, sigma = (f(t)[:, None] for f in (diffusion.schedule.alpha, diffusion.schedule.sigma))
            means, var = torch.tensor([-1.0, 1.0], dtype=x.dtype), (alpha * s) ** 2 + sigma**2
            posterior = means + alpha * s**2 / var * (x - alpha * means)
            either = (-((x - alpha * means) ** 2) / (2 * var)).softmax(1)
            known = torch.nn.functional.one_hot(label.clamp(max=1), 2).to(x.dtype)
            return (posterior * torch.where((label == 2)[:, None], either, known)).sum(1, keepdim=True)

    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = diffusion.schedule.alpha(t), diffusion.schedule.sigma(t)
    var = (alpha * s) ** 2 + sigma**2
    log_each = -((x - alpha * torch.tensor([-1.0, 1.0])) ** 2) / (2 * var)
    log_tilted = w * log_each[:, 1] + (1 - w) * log_each.logsumexp(1)
    (score,) = torch.autograd.grad(log_tilted.sum(), x)
    x0 = diffusion.denoiser(Exact(), label=torch.ones(21, dtype=torch.int64), guidance=w)(x.detach(), t)
    torch.testing.assert_close(x0, (x.detach() + sigma**2 * score) / alpha)  # Tweedie's formula


REFUSED = [
    ({"guidance": math.nan}, "guidance: expected a finite number, got nan"),
    ({"guidance": -math.inf}, "guidance: expected a finite number, got -inf"),
    ({"label": None, "guidance": 2.0}, "guidance: expected 1 where there is neither label nor context, got 2.0"),
    ({"label": torch.tensor([3, 11])}, "label: expected labels from 0 to 10, got 11"),
    ({"label": torch.tensor([-1, 3])}, "label: expected labels from 0 to 10, got -1"),
    ({"negative_label": torch.tensor([1])}, r"negative_label: expected the shape of label, \(2,\), got \(1,\)"),
    ({"negative_label": torch.tensor([1, 12])}, "negative_label: expected labels from 0 to 10, got 12"),
    ({"negative_context": torch.zeros(2, 1, 1)}, r"negative_context: expected the shape of context, None, got \(2, 1, 1\)"),
    ({"interval": (0.5, 0.5)}, r"interval: expected two numbers with 0 <= low < high <= 1, got \(0.5, 0.5\)"),
    ({"interval": (math.nan, 1.0)}, "interval: expected two numbers"),
    ({"interval": (0.0, 1.5)}, "interval: expected two numbers"),
    ({"rescale": 1.5}, r"rescale: expected a number in \[0, 1\], got 1.5"),
    ({"rescale": math.nan}, r"rescale: expected a number in \[0, 1\], got nan"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        denoiser(Conditional(), **{"label": LABEL, "guidance": 2.0} | options)


def test_a_network_without_a_null_label_needs_something_else_to_guide_away_from():
    net = Conditional()
    net.has_null_label = False
    with pytest.raises(ValueError, match=r"guidance: expected 1 for a network without a null label, got 2\.0"):
        denoiser(net, label=LABEL, guidance=2.0)
    with pytest.raises(ValueError, match="label: expected labels from 0 to 9, got 10"):
        denoiser(net, label=LABEL + 3)
    x0 = denoiser(net, label=LABEL, negative_label=LABEL - 1, guidance=2.0)(X, HALF)
    torch.testing.assert_close(first(x0), LABEL + 1.0)
