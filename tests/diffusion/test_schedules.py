import math

import pytest
import torch

from fastgen import schedules

T = torch.linspace(0, 1, 257)
ALL = list(schedules.SCHEDULES)
CHAINS = ["linear", "linear_zero_snr", "cosine", "cosine_zero_snr", "sigmoid"]


@pytest.mark.parametrize("name", ALL)
def test_from_clean_to_noise(name):
    schedule = schedules.SCHEDULES[name]()
    alpha, sigma, log_snr = schedule.alpha(T), schedule.sigma(T), schedule.log_snr(T)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha.diff() <= 0).all()
    assert ((sigma / alpha).diff() > 0).all()
    assert alpha[-1] < 0.04 * sigma[-1]
    assert (alpha[-1] == 0) == schedule.zero_terminal_snr
    torch.testing.assert_close(log_snr[1:-1], 2 * (alpha / sigma).log()[1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_log_snr_has_its_time(name):
    schedule = schedules.SCHEDULES[name]()
    t = torch.linspace(0, 1, 997, dtype=torch.float64)
    t = t[schedule.alpha(t) > 0]  # the last step of a chain without terminal SNR is all noise
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    nowhere = schedule.time(torch.tensor([math.inf, 1e3, -1e3, -math.inf]))
    assert ((nowhere >= 0) & (nowhere <= 1)).all()
    assert nowhere[0] == 0
    assert nowhere[3] == 1
    assert schedule.time(torch.zeros(2)).dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_the_snr_falls_as_fast_as_autograd_says(name):
    schedule = schedules.SCHEDULES[name]()
    t = ((torch.arange(20, 980, 7) + 0.5) / 1000).double().requires_grad_()  # amid the steps of a chain
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    (slope,) = torch.autograd.grad(snr.sum(), t)
    torch.testing.assert_close(schedule.snr_decay(t.detach()), -slope, rtol=1e-6, atol=1e-12)


def test_a_stepwise_chain_has_the_decay_of_its_step():
    betas = schedules.linear(10, 0.01, 0.3).betas
    smooth, stepwise = schedules.Discrete(betas), schedules.Discrete(betas, stepwise=True)
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    torch.testing.assert_close(stepwise.snr_decay(t - 0.03), smooth.snr_decay(t))


def test_the_edm_curve_is_the_papers_less_its_least_noise():
    schedule, u = schedules.EDM(), torch.linspace(0, 1, 50, dtype=torch.float64)
    papers = (0.002 ** (1 / 7) + u * (80.002 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma(u), papers - 0.002, rtol=1e-9, atol=1e-15)
    assert schedule.sigma(torch.ones(())) == pytest.approx(80, rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_is_that_of_diffusers(name):
    scheduling_ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    chain = schedules.SCHEDULES[name]()
    expected = scheduling_ddim.rescale_zero_terminal_snr(chain.betas)
    torch.testing.assert_close(schedules.zero_terminal_snr(chain).betas, expected, rtol=1e-9, atol=1e-12)
    assert schedules.zero_terminal_snr(schedules.Discrete(chain.betas, stepwise=True)).stepwise


@pytest.mark.parametrize("name", CHAINS)
def test_variance_preserving(name):
    schedule = schedules.SCHEDULES[name]()
    torch.testing.assert_close(schedule.alpha(T) ** 2 + schedule.sigma(T) ** 2, torch.ones_like(T))


@pytest.mark.parametrize("steps", [1, 7, 1000, 4000])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_exact_on_the_grid_in_fp32(name, steps):
    schedule = schedules.SCHEDULES[name](steps)
    exact = (1 - schedule.betas).cumprod(0)
    t = torch.arange(1, steps + 1, dtype=torch.float32) / steps
    torch.testing.assert_close(schedule.alpha(t).double() ** 2, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.sigma(t).double() ** 2, 1 - exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_betas_are_those_of_diffusers(name, theirs):
    diffusers = pytest.importorskip("diffusers")
    betas = diffusers.DDPMScheduler(beta_schedule=theirs).betas.double()
    torch.testing.assert_close(schedules.SCHEDULES[name]().betas, betas, rtol=2e-4, atol=1e-8)  # theirs are fp32


def test_cosine_follows_its_formula():
    t = torch.linspace(0.01, 0.95, 50, dtype=torch.float64)
    f = [math.cos((v + 0.008) / 1.008 * math.pi / 2) ** 2 for v in (0.0, *t.tolist())]
    expected = torch.tensor(f[1:], dtype=torch.float64) / f[0]
    torch.testing.assert_close(schedules.cosine().alpha(t) ** 2, expected, rtol=1e-3, atol=0)


def test_small_times_keep_their_noise_in_bf16():
    t = torch.tensor([1e-3, 2e-3, 3e-3], dtype=torch.bfloat16)
    for name in ALL:
        sigma = schedules.SCHEDULES[name]().sigma(t)
        assert sigma.dtype == torch.float32
        assert (sigma > 0).all()
        assert len(sigma.unique()) == 3


def test_fp64_times_give_fp64():
    for name in ALL:
        assert schedules.SCHEDULES[name]().sigma(T.double()).dtype == torch.float64


def test_a_beta_of_one_is_zero_terminal_snr():
    schedule = schedules.Discrete(torch.tensor([0.1, 0.5, 1.0]))
    assert schedule.zero_terminal_snr
    assert schedule.alpha(torch.tensor([1.0])) == 0
    assert schedule.sigma(torch.tensor([1.0])) == 1
    assert not schedule.alpha(torch.tensor([0.0, 1 / 3, 0.5, 2 / 3])).isnan().any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="betas: expected"):
        schedules.Discrete(torch.tensor([0.1, 1.5]))
    for steps in (0, -5, 1.5):
        with pytest.raises(ValueError, match=f"steps: expected a whole number >= 1, got {steps}"):
            schedules.linear(steps)
    with pytest.raises(ValueError, match=r"sigma_min, sigma_max: expected 0 < sigma_min < sigma_max, got 2.0, 1.0"):
        schedules.EDM(2.0, 1.0)
    with pytest.raises(ValueError, match="rho: expected a finite number > 0, got 0"):
        schedules.EDM(rho=0)
