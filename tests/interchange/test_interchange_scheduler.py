"""Diffusion.from_scheduler against diffusers' own arithmetic."""

import json

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr  # noqa: E402

from fastgen import Diffusion, samplers  # noqa: E402
from fastgen.config.diffusers import FLOW, read_scheduler, scheduler_for  # noqa: E402
from fastgen.config.schema import DiffusionConfig  # noqa: E402
from fastgen.diffusion.schedules import SCHEDULES, Discrete, RectifiedFlow  # noqa: E402
from fastgen.functional import noise_key, philox_uniform  # noqa: E402
from fastgen.models.diffusers_unet import DiffusersUNet  # noqa: E402
from tests.helpers import tiny_diffusers  # noqa: E402

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CHAINS = [
    (diffusers.DDPMScheduler, {}),
    (diffusers.DDPMScheduler, {"num_train_timesteps": 7, "beta_end": 0.5}),
    (diffusers.DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}),
    (diffusers.DDPMScheduler, {"beta_schedule": "sigmoid"}),
    (diffusers.DDPMScheduler, {"trained_betas": [0.1, 0.2, 0.9]}),
    (diffusers.DDIMScheduler, {"trained_betas": np.linspace(0.001, 0.3, 50)}),
    (diffusers.DDIMScheduler, {**STABLE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    (diffusers.PNDMScheduler, {**STABLE, "skip_prk_steps": True, "steps_offset": 1}),
    (diffusers.EulerDiscreteScheduler, STABLE),
    (diffusers.DPMSolverMultistepScheduler, {**STABLE, "use_karras_sigmas": True}),
    (diffusers.UniPCMultistepScheduler, STABLE),
]


def grid(steps):
    return torch.arange(1, steps + 1, dtype=torch.float64) / steps


@pytest.mark.parametrize(("cls", "options"), CHAINS, ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v))
def test_a_chain_is_that_of_diffusers(cls, options):
    scheduler = cls(**options)
    diffusion = Diffusion.from_scheduler(scheduler)
    steps = len(scheduler.alphas_cumprod)
    alpha_bar = scheduler.alphas_cumprod.double()
    for dtype in (torch.float64, torch.float32):
        t = grid(steps).to(dtype)
        torch.testing.assert_close(diffusion.schedule.alpha(t).double() ** 2, alpha_bar, rtol=0, atol=1e-6)
        torch.testing.assert_close(diffusion.schedule.sigma(t).double() ** 2, 1 - alpha_bar, rtol=0, atol=1e-6)
    ours = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    assert diffusion.prediction == ours[scheduler.config.prediction_type]


@pytest.mark.parametrize(("cls", "options"), CHAINS[:7], ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v))
def test_noise_is_added_as_by_diffusers_in_fp64(cls, options):
    """Their betas are fp32, which is exact enough; their product is made again in fp64."""
    schedule = Diffusion.from_scheduler(cls(**options)).schedule
    rescaled = options.get("rescale_betas_zero_snr", False)
    scheduler = cls(**{key: value for key, value in options.items() if key != "rescale_betas_zero_snr"})
    betas = scheduler.betas.double()
    scheduler.alphas_cumprod = (1 - (rescale_zero_terminal_snr(betas) if rescaled else betas)).cumprod(0)
    steps = len(betas)
    x0, noise = torch.randn(2, steps, 3, dtype=torch.float64)
    ours = schedule.alpha(grid(steps))[:, None] * x0 + schedule.sigma(grid(steps))[:, None] * noise
    torch.testing.assert_close(ours, scheduler.add_noise(x0, noise, torch.arange(steps)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_a_flow_is_that_of_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    diffusion = Diffusion.from_scheduler(scheduler)
    x0, noise = torch.randn(2, 1000, 3)
    t = grid(1000).float()
    theirs = scheduler.scale_noise(x0, scheduler.timesteps.flip(0), noise)
    ours = diffusion.schedule.alpha(t)[:, None] * x0 + diffusion.schedule.sigma(t)[:, None] * noise
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (diffusion.prediction, diffusion.schedule.zero_terminal_snr) == ("flow", True)
    ends = torch.tensor([0.0, 1.0])
    assert diffusion.schedule.alpha(ends).tolist() == [1, 0]
    assert diffusion.schedule.sigma(ends).tolist() == [0, 1]
    torch.testing.assert_close(diffusion.schedule.alpha(t) + diffusion.schedule.sigma(t), torch.ones_like(t))


def test_between_its_steps_a_chain_has_the_noise_of_the_next():
    schedule = Diffusion.from_scheduler(diffusers.DDPMScheduler(num_train_timesteps=4, beta_end=0.9)).schedule
    t = torch.tensor([0.0, 0.01, 0.25, 0.2501, 0.5, 0.74, 1.0])
    assert schedule.level(t).tolist() == [0, 1, 1, 2, 2, 3, 4]
    assert torch.equal(schedule.alpha(t), schedule.alpha(schedule.level(t) / 4))
    assert schedule.alpha(t)[0] == 1
    assert torch.equal(schedule.log_snr(t), schedule.log_snr(schedule.level(t) / 4))


@pytest.mark.parametrize("steps", [1, 3, 7, 1000, 4000])
def test_every_index_is_reached_at_its_time_in_fp32(steps):
    schedule = Discrete(torch.full((steps,), 0.1), stepwise=True)
    level = torch.arange(1, steps + 1)
    for t in (level / steps, level.float() * (1 / steps), 1 - (steps - level) / steps, torch.linspace(0, 1, steps + 1)[1:]):
        assert torch.equal(schedule.level(t), level)


def test_uniform_times_draw_every_index_alike():
    schedule = Discrete(torch.full((8,), 0.1), stepwise=True)
    counts = torch.bincount(schedule.level(philox_uniform((100_000,), noise_key(0, samples=100_000))), minlength=9)
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:].double(), torch.full((8,), 12_500.0).double(), rtol=0.05, atol=0)


# What a scheduler may be given as


@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler(**STABLE), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)])
def test_an_object_its_config_and_its_file_are_the_same(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    t = torch.linspace(0, 1, 11)
    alpha = Diffusion.from_scheduler(scheduler).schedule.alpha(t)
    for given in (scheduler.config, dict(scheduler.config), saved, tmp_path, str(tmp_path), tmp_path / "scheduler_config.json"):
        assert torch.equal(Diffusion.from_scheduler(given).schedule.alpha(t), alpha)
    assert read_scheduler(scheduler)["_class_name"] == saved["_class_name"]
    assert json.loads(json.dumps(read_scheduler(scheduler))) == read_scheduler(scheduler)


def test_the_weighting_is_ours():
    assert Diffusion.from_scheduler(diffusers.DDPMScheduler(), "min_snr").weighting == "min_snr"


DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2}
WRONG = [
    (3, "scheduler: expected a scheduler of diffusers, its config, or a path to it, got 3"),
    ({}, "scheduler._class_name: expected the scheduler's class, got None"),
    ({"_class_name": "EDMEulerScheduler"}, r"scheduler._class_name: expected one of DDPMScheduler, .*, got 'EDMEulerScheduler'"),
    (DDPM | {"beta_schedule": "laplace"}, r"scheduler.beta_schedule: expected one of linear, .*, got 'laplace'"),
    (DDPM | {"beta_start": None}, r"scheduler.beta_start: expected a number in \[0, 1\], got None"),
    (DDPM | {"beta_end": 2}, r"scheduler.beta_end: expected a number in \[0, 1\], got 2"),
    (DDPM | {"trained_betas": [0.1, "x"]}, r"scheduler.trained_betas: expected a list of numbers in \[0, 1\], got"),
    (DDPM | {"trained_betas": []}, r"scheduler.trained_betas: expected a list of numbers in \[0, 1\], got"),
    (DDPM | {"num_train_timesteps": 0}, "scheduler.num_train_timesteps: expected a whole number >= 1, got 0"),
    (DDPM | {"variance_type": "learned_range"}, "scheduler.variance_type: expected one that the network does not predict, got"),
    (
        DDPM | {"prediction_type": "flow_prediction"},
        "scheduler.prediction_type: expected one of epsilon, sample, v_prediction",
    ),
    (DDPM | {"rescale_betas_zero_snr": True}, "scheduler.prediction_type: expected sample or v_prediction where"),
    (DDPM | {"trained_betas": [0.5, 1]}, "scheduler.prediction_type: expected sample or v_prediction where"),
    (DDPM | {"use_flow_sigmas": True}, "scheduler.use_flow_sigmas: expected none"),
    ({"_class_name": FLOW, "use_dynamic_shifting": True}, "scheduler.use_dynamic_shifting: expected none"),
    ({"_class_name": FLOW, "shift_terminal": 0.1}, "scheduler.shift_terminal: expected none"),
    ({"_class_name": FLOW, "invert_sigmas": True}, "scheduler.invert_sigmas: expected none"),
    ({"_class_name": FLOW, "shift": 0}, "scheduler.shift: expected a finite number > 0, got 0"),
    ({"_class_name": FLOW, "num_train_timesteps": 100}, "scheduler.num_train_timesteps: expected 1000 for a flow, got 100"),
    ("nowhere", "scheduler: expected a JSON file that can be read, got 'nowhere': No such file or directory"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_cannot_be_represented_is_named(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Diffusion.from_scheduler(given)


@pytest.mark.parametrize(("text", "message"), [("{", "got other text: Expecting"), ("[1]", "expected a JSON object")])
def test_a_spoilt_file_is_named(text, message, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^scheduler: .*scheduler_config.json.*{message}"):
        Diffusion.from_scheduler(tmp_path)


def test_a_shift_that_is_none_is_named():
    with pytest.raises(ValueError, match="shift: expected a finite number > 0, got -1"):
        RectifiedFlow(-1)


# And back


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(s, p) for s in ("linear", "cosine") for p in ("eps", "x0", "v")] + [("rectified_flow", "flow")],
)
def test_the_scheduler_of_a_diffusion_is_the_same_diffusion(schedule, prediction):
    config = scheduler_for(DiffusionConfig(schedule, prediction))
    back = Diffusion.from_scheduler(getattr(diffusers, config["_class_name"]).from_config(config))
    t = grid(1000)
    assert back.prediction == prediction
    torch.testing.assert_close(back.schedule.alpha(t), SCHEDULES[schedule]().alpha(t), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "prediction", "message"),
    [
        (
            "sigmoid",
            "eps",
            "diffusion.schedule: expected linear, cosine or rectified_flow for a UNet of diffusers, got",
        ),
        ("linear", "flow", "diffusion.prediction: expected eps, x0, v on betas, for a UNet of diffusers, got 'flow'"),
        ("rectified_flow", "v", f"diffusion.prediction: expected flow for {FLOW}, got 'v'"),
    ],
)
def test_a_diffusion_that_diffusers_does_not_have_is_named(schedule, prediction, message):
    with pytest.raises(ValueError, match=message):
        scheduler_for(DiffusionConfig(schedule, prediction))


# Sampling


def drawn_by_diffusers(scheduler, unet, x):
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(unet(x, timestep).sample, timestep, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim_draws_what_diffusers_draws(prediction, steps):
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(steps)
    unet, x = tiny_diffusers.unet().eval(), torch.randn(2, 1, 8, 8)
    denoise = Diffusion.from_scheduler(scheduler).denoiser(DiffusersUNet(unet, scheduler))
    with torch.no_grad():
        ours = samplers.ddim(denoise, x, samplers.uniform_times(steps))
    theirs = drawn_by_diffusers(scheduler, unet, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_flow_draws_what_diffusers_draws(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    unet, x = tiny_diffusers.unet().eval(), torch.randn(2, 1, 8, 8)
    denoise = Diffusion.from_scheduler(scheduler).denoiser(DiffusersUNet(unet, scheduler))
    with torch.no_grad():
        ours = samplers.euler(denoise, x, samplers.uniform_times(10))
    torch.testing.assert_close(ours, drawn_by_diffusers(scheduler, unet, x), rtol=1e-4, atol=1e-5)
