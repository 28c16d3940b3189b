import pytest
import torch
from torch import nn

from fastgen import Diffusion, DiffusionObjective, UNet, streams
from fastgen.diffusion import PREDICTIONS, WEIGHTINGS
from fastgen.functional import at, noise_key, philox_normal, q_sample
from fastgen.objectives import TIMES
from fastgen.schedules import SCHEDULES

COMBINATIONS = [(s, p) for s in SCHEDULES for p in PREDICTIONS if (s, p) != ("rectified_flow", "eps")]


class Oracle(nn.Module):
    """A network that knows the target of every sample."""

    num_classes = 10

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, t, label=None, context=None):
        return self.target


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_the_exact_prediction_gives_x0_back(schedule, prediction):
    diffusion = Diffusion(schedule, prediction)
    x0, noise = torch.randn(2, 64, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    x_t, target = q_sample(x0, diffusion.schedule.alpha(t), diffusion.schedule.sigma(t), noise=noise, target=prediction)
    torch.testing.assert_close(diffusion.denoiser(Oracle(target))(x_t, t), x0, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_min_snr_weighs_the_error_of_x0_alike_in_every_prediction(schedule, prediction):
    """The identity of arXiv:2303.09556: w · |prediction error|² is min(SNR, 5) · |x0 error|²."""
    diffusion = Diffusion(schedule, prediction, "min_snr")
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    alpha, sigma = diffusion.schedule.alpha(t), diffusion.schedule.sigma(t)
    x0, noise, error = torch.randn(3, 64, 5, dtype=torch.float64)
    x_t, target = q_sample(x0, alpha, sigma, noise=noise, target=prediction)
    x0_hat = diffusion.denoiser(Oracle(target + error))(x_t, t)
    expected = (alpha**2 / sigma**2).clamp(max=5) * ((x0_hat - x0) ** 2).sum(1)
    torch.testing.assert_close(diffusion.weight(t) * (error**2).sum(1), expected, rtol=1e-6, atol=1e-9)


def test_min_snr_in_the_papers_forms():
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    schedule = SCHEDULES["cosine"]()
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    torch.testing.assert_close(Diffusion("cosine", "eps", "min_snr").weight(t), snr.clamp(max=5) / snr)
    torch.testing.assert_close(Diffusion("cosine", "v", "min_snr").weight(t), snr.clamp(max=5) / (snr + 1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_weights_are_finite_from_end_to_end(schedule, prediction, weighting):
    assert Diffusion(schedule, prediction, weighting).weight(torch.linspace(0, 1, 33)).isfinite().all()


def test_unknown_names_and_eps_at_zero_snr_are_refused():
    with pytest.raises(ValueError, match=r"schedule: expected one of .*, got 'cosin'; did you mean cosine\?"):
        Diffusion("cosin")
    with pytest.raises(ValueError, match="prediction: expected one of"):
        Diffusion("cosine", "epsilon")
    with pytest.raises(ValueError, match="weighting: expected one of"):
        Diffusion("cosine", "eps", "snr")
    with pytest.raises(ValueError, match="zero terminal SNR, got 'eps'"):
        Diffusion("rectified_flow", "eps")


def test_clip_bounds_x0():
    denoise = Diffusion("cosine", "x0").denoiser(Oracle(torch.full((1, 1, 2, 2), 3.0)), clip=1.0)
    assert (denoise(torch.randn(1, 1, 2, 2), torch.tensor(0.5)) == 1).all()


# The objective


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_the_objective_of_an_oracle_is_zero_and_of_zero_is_the_targets_power(schedule, prediction):
    diffusion = Diffusion(schedule, prediction)
    x0, key = torch.rand(16, 1, 8, 8) * 2 - 1, noise_key(0, samples=16)
    t = TIMES["uniform"](at(key, stream=streams.TIME), None)
    noise = philox_normal(x0.shape, at(key, stream=streams.NOISE))
    _, target = q_sample(x0, diffusion.schedule.alpha(t), diffusion.schedule.sigma(t), noise=noise, target=prediction)
    assert (DiffusionObjective(Oracle(target), diffusion)(x0, key=key) == 0).all()
    loss = DiffusionObjective(Oracle(torch.zeros_like(target)), diffusion)(x0, key=key)
    torch.testing.assert_close(loss, target.pow(2).mean((1, 2, 3)))


def test_the_objective_does_not_depend_on_how_a_batch_is_split():
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1, num_classes=10).eval()
    nn.init.normal_(net.head.weight)
    objective = DiffusionObjective(net, Diffusion("rectified_flow"), times="stratified", label_dropout=0.5, strata=8)
    x0, label, key = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8), noise_key(3, step=5, samples=8)
    whole = objective(x0, label, key=key)
    parts = [objective(x0[i : i + 3], label[i : i + 3], key=key[i : i + 3]) for i in range(0, 8, 3)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_labels_are_dropped_at_the_rate_asked_for():
    seen = []

    class Net(Oracle):
        def forward(self, x, t, label=None, context=None):
            seen.append((label, context))
            return torch.zeros_like(x)

    n = 4000
    objective = DiffusionObjective(Net(None), Diffusion("cosine"), label_dropout=0.1)
    label, context = torch.randint(0, 10, (n,)), torch.ones(n, 2, 3)
    objective(torch.zeros(n, 1, 1, 1), label, context, key=noise_key(0, samples=n))
    dropped = seen[0][0] == 10
    assert 0.08 < dropped.float().mean() < 0.12
    assert torch.equal(seen[0][0][~dropped], label[~dropped])
    assert torch.equal(seen[0][1][:, 0, 0] == 0, dropped)


def test_stratified_times_cover_every_stratum_once():
    for key in (noise_key(0, streams.TIME, 3, 64), noise_key(0, streams.TIME, 4, range(128, 192))):
        t = TIMES["stratified"](key, 64)
        assert torch.equal((t * 64).floor().sort().values, torch.arange(64.0))


def test_logit_normal_times_are_the_sigmoid_of_a_normal():
    t = TIMES["logit_normal"](noise_key(0, streams.TIME, 0, 20_000), None)
    n = t.logit()
    assert abs(n.mean()) < 0.03
    assert abs(n.std() - 1) < 0.03


def test_fresh_keys_follow_torchs_seed():
    objective = DiffusionObjective(Oracle(torch.zeros(4, 1, 2, 2)), Diffusion("cosine"))
    torch.manual_seed(1)
    first, second = objective(torch.ones(4, 1, 2, 2)), objective(torch.ones(4, 1, 2, 2))
    torch.manual_seed(1)
    assert torch.equal(objective(torch.ones(4, 1, 2, 2)), first)
    assert not torch.equal(first, second)


def test_objective_settings_are_checked():
    with pytest.raises(ValueError, match="times: expected one of"):
        DiffusionObjective(Oracle(None), Diffusion("cosine"), times="unifrom")
    with pytest.raises(ValueError, match="label_dropout"):
        DiffusionObjective(Oracle(None), Diffusion("cosine"), label_dropout=1.5)


@pytest.mark.parametrize("schedule", ["linear", "rectified_flow"])
def test_the_objective_compiles_whole(schedule):
    """What torch.compile wraps: the objective, with its draws, schedule, network and loss, without a graph break."""
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1, num_classes=10)
    nn.init.normal_(net.head.weight)
    objective = DiffusionObjective(net, Diffusion(schedule, "v", "min_snr"), times="logit_normal", label_dropout=0.5)
    x0, label, key = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4), noise_key(3, samples=4)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x0, label, key=key), objective(x0, label, key=key))
