import pytest
import torch
from torch import nn

from fastgen import Diffusion, DiffusionObjective, UNet, noise_streams
from fastgen.diffusion.objective import TIME_DRAWS
from fastgen.diffusion.process import PREDICTIONS, WEIGHTINGS
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import at, noise_key, philox_normal

COMBINATIONS = [(s, p) for s in SCHEDULES for p in PREDICTIONS if p != "eps" or not SCHEDULES[s]().zero_terminal_snr]


class Oracle(nn.Module):
    """A network that knows the target of every sample."""

    num_classes = 10

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, t, label=None, context=None):
        return self.target


def noised(diffusion, x0, noise, t):
    """x_t and what the prediction is to be; EDM's from its paper's table 1, in x_t / alpha."""
    alpha, sigma = (f(t).view(-1, *[1] * (x0.dim() - 1)) for f in (diffusion.schedule.alpha, diffusion.schedule.sigma))
    x_t = alpha * x0 + sigma * noise
    if diffusion.prediction == "edm":
        level = sigma / alpha
        c_skip, c_out = 0.25 / (level**2 + 0.25), level * 0.5 / (level**2 + 0.25).sqrt()
        return x_t, (x0 - c_skip * x_t / alpha) / c_out
    return x_t, {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[diffusion.prediction]


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_the_exact_prediction_gives_x0_back(schedule, prediction):
    diffusion = Diffusion(schedule, prediction)
    x0, noise = torch.randn(2, 64, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    x_t, target = noised(diffusion, x0, noise, t)
    torch.testing.assert_close(diffusion.denoiser(Oracle(target))(x_t, t), x0, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_min_snr_weighs_the_error_of_x0_alike_in_every_prediction(schedule, prediction):
    """The identity of arXiv:2303.09556: w · |prediction error|² is min(SNR, 5) · |x0 error|²."""
    diffusion = Diffusion(schedule, prediction, "min_snr")
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    alpha, sigma = diffusion.schedule.alpha(t), diffusion.schedule.sigma(t)
    x0, noise, error = torch.randn(3, 64, 5, dtype=torch.float64)
    x_t, target = noised(diffusion, x0, noise, t)
    x0_hat = diffusion.denoiser(Oracle(target + error))(x_t, t)
    expected = (alpha**2 / sigma**2).clamp(max=5) * ((x0_hat - x0) ** 2).sum(1)
    torch.testing.assert_close(diffusion.weight(t) * (error**2).sum(1), expected, rtol=1e-6, atol=1e-9)


def test_min_snr_in_the_papers_forms():
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    schedule = SCHEDULES["cosine"]()
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    torch.testing.assert_close(Diffusion("cosine", "eps", "min_snr").weight(t), snr.clamp(max=5) / snr)
    torch.testing.assert_close(Diffusion("cosine", "v", "min_snr").weight(t), snr.clamp(max=5) / (snr + 1))


@pytest.mark.parametrize(("schedule", "prediction"), COMBINATIONS)
def test_weights_are_finite_wherever_t_is_drawn(schedule, prediction):
    lowest, highest = 2.0**-24, 1 - 2.0**-24  # philox_uniform's
    t = torch.cat([torch.linspace(0, 1, 33)[1:], torch.tensor([lowest, highest])])
    for weighting in WEIGHTINGS:
        weight = Diffusion(schedule, prediction, weighting).weight(t)
        assert weight.isfinite().all(), weighting
        assert (weight >= 0).all(), weighting
    for weighting in ("uniform", "min_snr", "p2"):  # the others grow with the SNR
        assert Diffusion(schedule, prediction, weighting).weight(torch.zeros(1)).isfinite().all(), weighting


def test_edm_weighs_its_own_prediction_with_one():
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    for schedule in ("edm", "cosine", "rectified_flow"):
        torch.testing.assert_close(Diffusion(schedule, "edm", "edm").weight(t), torch.ones_like(t))
    level = SCHEDULES["edm"]().sigma(t)
    torch.testing.assert_close(Diffusion("edm", "x0", "edm").weight(t), (level**2 + 0.25) / (level * 0.5) ** 2)


def test_p2_in_the_papers_form():
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    schedule = SCHEDULES["linear"]()
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    torch.testing.assert_close(Diffusion("linear", "eps", "p2").weight(t), 1 / (1 + snr))


def test_vlb_weighs_as_the_kl_of_small_steps():
    """arXiv:2107.00630, eq. 13 and 16: (SNR(s) - SNR(t)) / 2 on the error of x0, a unit of time."""
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    for name in ("linear", "cosine", "rectified_flow", "edm"):
        schedule = SCHEDULES[name]()
        t = t if name in ("rectified_flow", "edm") else ((t * 1000).floor() + 0.5) / 1000  # amid a step of the chain
        kl = ((schedule.log_snr(t - 1e-5)).exp() - schedule.log_snr(t + 1e-5).exp()) / 2 / 2e-5
        torch.testing.assert_close(Diffusion(name, "x0", "vlb").weight(t), kl, rtol=1e-5, atol=0)


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
    torch.manual_seed(0)
    diffusion = Diffusion(schedule, prediction)
    x0, key = torch.rand(16, 1, 8, 8) * 2 - 1, noise_key(0, samples=16)
    t = TIME_DRAWS["uniform"](at(key, stream=noise_streams.TIME), None, diffusion.schedule)
    noise = philox_normal(x0.shape, at(key, stream=noise_streams.NOISE))
    _, target = noised(diffusion, x0.double(), noise.double(), t.double())
    target = target.float()
    power = target.pow(2).mean((1, 2, 3))
    assert (DiffusionObjective(Oracle(target), diffusion)(x0, key=key) < 1e-10 * power.clamp(min=1)).all()  # rounding
    loss = DiffusionObjective(Oracle(torch.zeros_like(target)), diffusion)(x0, key=key)
    torch.testing.assert_close(loss, power)


@pytest.mark.parametrize("times", ["stratified", "low_discrepancy"])
def test_the_objective_does_not_depend_on_how_a_batch_is_split(times):
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1, num_classes=10).eval()
    nn.init.normal_(net.head.weight)
    objective = DiffusionObjective(net, Diffusion("rectified_flow"), times=times, label_dropout=0.5, strata=8)
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
    for key in (noise_key(0, noise_streams.TIME, 3, 64), noise_key(0, noise_streams.TIME, 4, range(128, 192))):
        t = TIME_DRAWS["stratified"](key, 64, SCHEDULES["cosine"]())
        assert torch.equal((t * 64).floor().sort().values, torch.arange(64.0))


def test_low_discrepancy_times_are_evenly_spaced_around_the_circle():
    """From an offset that the batch shares and each step draws anew, uniform over all of them."""
    offsets = []
    for step in range(200):
        t = TIME_DRAWS["low_discrepancy"](noise_key(0, noise_streams.TIME, step, 64), 64, SCHEDULES["cosine"]())
        steps = torch.cat([t, t[:1]]).diff() % 1
        torch.testing.assert_close(steps, torch.full((64,), 1 / 64))
        assert ((t > 0) & (t < 1)).all()
        offsets.append(t[0])
    distance = (torch.stack(offsets).sort().values - torch.linspace(0, 1, 200)).abs().max()
    assert distance < 0.115  # of Kolmogorov and Smirnov: exceeded by chance in one of a hundred seeds


def test_low_discrepancy_times_never_are_zero(monkeypatch):
    """u + 1/2 lies between two floats and rounds to 1."""
    monkeypatch.setattr("fastgen.diffusion.objective.philox_uniform", lambda shape, key: torch.full(shape, 0.5 + 2**-24))
    assert (TIME_DRAWS["low_discrepancy"](noise_key(0, samples=2), 2, SCHEDULES["cosine"]()) > 0).all()


def test_logit_normal_times_are_the_sigmoid_of_a_normal():
    t = TIME_DRAWS["logit_normal"](noise_key(0, noise_streams.TIME, 0, 20_000), None, SCHEDULES["cosine"]())
    n = t.logit()
    assert abs(n.mean()) < 0.03
    assert abs(n.std() - 1) < 0.03


@pytest.mark.parametrize("schedule", ["edm", "rectified_flow", "linear"])
def test_edm_times_draw_the_log_normal_noise_of_the_paper(schedule):
    schedule = SCHEDULES[schedule]()
    t = TIME_DRAWS["edm"](noise_key(0, noise_streams.TIME, 0, 20_000), None, schedule)
    log_level = -schedule.log_snr(t) / 2  # of mean -1.2 and deviation 1.2
    assert ((t > 0) & (t <= 1)).all()
    assert abs(log_level.mean() + 1.2) < 0.03
    assert abs(log_level.std() - 1.2) < 0.02


def test_the_network_under_edm_reads_unit_variance():
    seen = []

    class Net(Oracle):
        def forward(self, x, t, label=None, context=None):
            seen.append(x)
            return torch.zeros_like(x)

    diffusion, key = Diffusion("edm", "edm", "edm"), noise_key(0, samples=2000)
    x0 = 0.5 * philox_normal((2000, 1, 4, 4), noise_key(1, samples=2000))
    DiffusionObjective(Net(None), diffusion, times="edm")(x0, key=key)
    diffusion.denoiser(Net(None))(80 * philox_normal((2000, 1, 4, 4), key), torch.ones(()))
    assert all(abs(x.std() - 1) < 0.02 for x in seen)


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


@pytest.mark.parametrize(
    ("schedule", "prediction", "weighting", "times", "backend"),
    [
        ("linear", "v", "min_snr", "logit_normal", "eager"),
        ("rectified_flow", "v", "min_snr", "logit_normal", "aot_eager"),
        ("cosine", "edm", "vlb", "edm", "eager"),
    ],
)
def test_the_objective_compiles_whole(schedule, prediction, weighting, times, backend):
    """What torch.compile wraps: the objective, with its draws, schedule, network and loss, without a graph break; once through
    autograd and decompositions too, which take long for Philox. UNets compile in test_unet.py."""

    class Net(nn.Module):
        num_classes = 10

        def __init__(self):
            super().__init__()
            self.embedding, self.conv = nn.Embedding(11, 1), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, label=None, context=None):
            return self.conv(x) * t[:, None, None, None] + self.embedding(label)[:, :, None, None]

    torch.manual_seed(0)
    net = Net()
    objective = DiffusionObjective(net, Diffusion(schedule, prediction, weighting), times=times, label_dropout=0.5)
    x0, label, key = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4), noise_key(3, samples=4)
    compiled = torch.compile(objective, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x0, label, key=key), objective(x0, label, key=key))
