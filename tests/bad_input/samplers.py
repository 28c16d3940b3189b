"""Samplers, time grids, denoisers, likelihoods, and drawing from a run in Python."""

import math

import torch

import fastgen
from fastgen import likelihood, samplers, schedules
from fastgen.config.sampling import Sampling
from tests.bad_input.judge import bad
from tests.bad_input.models import CONV_VAE, FLOW, INF, LABEL, NAN, SMALL, UNET, Returns

X, TIMES, KEY = torch.zeros(2, 1, 8, 8), samplers.uniform_times(2), fastgen.functional.noise_key(0, samples=2)
ZEROS = FLOW.denoiser(Returns(X))
PLAIN = fastgen.UNet(1, **SMALL)
FLOW_SCHEDULE = schedules.RectifiedFlow()
ALL = [
    getattr(samplers, name) for name in ("ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
]


def denoise(net, **options):
    return FLOW.denoiser(net, **options)(X, torch.tensor(0.5))


CASES = [
    *(bad("denoise", sampler, None, X, TIMES) for sampler in ALL),
    *(bad("times", sampler, ZEROS, X, TIMES.flip(0)) for sampler in ALL),
    *(bad("net", sampler, FLOW.denoiser(Returns(X[:1])), X, TIMES) for sampler in ALL),
    bad("denoise", samplers.euler, UNET, X, TIMES),
    bad("denoise", samplers.euler, lambda x, t: x, X, TIMES),
    bad("x", samplers.euler, ZEROS, None, TIMES),
    bad("x", samplers.euler, ZEROS, X.long(), TIMES),
    bad("x", samplers.euler, ZEROS, X * NAN, TIMES),
    bad("x", samplers.euler, ZEROS, torch.tensor(0.0), TIMES),
    bad("x", samplers.euler, ZEROS, [[0.0]], TIMES),
    bad("times", samplers.euler, ZEROS, X, None),
    bad("times", samplers.euler, ZEROS, X, 10),
    bad("times", samplers.euler, ZEROS, X, [1.0, 0.0]),
    bad("times", samplers.euler, ZEROS, X, torch.ones(1)),
    bad("times", samplers.euler, ZEROS, X, torch.tensor([1.0, 0.5, 0.5, 0.0])),
    bad("times", samplers.euler, ZEROS, X, torch.tensor([1.5, 0.5, 0.0])),
    bad("times", samplers.euler, ZEROS, X, torch.tensor([1.0, 0.5, -0.5])),
    bad("times", samplers.euler, ZEROS, X, torch.tensor([1.0, NAN, 0.0])),
    bad("times", samplers.euler, ZEROS, X, torch.tensor([1000, 500, 0])),
    bad("times", samplers.euler, ZEROS, X, torch.zeros(2, 3)),
    bad("key", samplers.ddpm, ZEROS, X, TIMES, key=KEY[:1]),
    bad("key", samplers.ddpm, ZEROS, X, TIMES, key=0),
    bad("key", samplers.dpmpp_2m_sde, ZEROS, X, TIMES, key=KEY.float()),
    bad("callback", samplers.euler, ZEROS, X, TIMES, callback="print"),
    bad("eta", samplers.ddim, ZEROS, X, TIMES, eta=-1.0),
    bad("eta", samplers.ddim, ZEROS, X, TIMES, eta=NAN),
    # Time grids.
    *(bad("steps", samplers.uniform_times, steps) for steps in (0, -1, 2.5, "10", None, 10**9)),
    bad("steps", samplers.quadratic_times, 0),
    bad("steps", samplers.shifted_times, 10**12),
    bad("shift", samplers.shifted_times, 4, shift=0.0),
    bad("shift", samplers.shifted_times, 4, shift=NAN),
    bad("steps", samplers.karras_times, FLOW_SCHEDULE, 0),
    bad("steps", samplers.karras_times, FLOW_SCHEDULE, 1.5),
    bad("schedule", samplers.karras_times, "linear", 4),
    bad("schedule", samplers.log_snr_times, None, 4),
    *(bad("rho", samplers.karras_times, FLOW_SCHEDULE, 4, rho=rho) for rho in (0.0, -7.0, NAN, "7")),
    *(bad("sigma_min", samplers.karras_times, FLOW_SCHEDULE, 4, sigma_min=low) for low in (0.0, -1.0, 100.0, NAN, None)),
    bad("sigma_max", samplers.log_snr_times, FLOW_SCHEDULE, 4, sigma_max=INF),
    bad("steps", samplers.log_snr_times, FLOW_SCHEDULE, 10**9),
    # Denoisers.
    *(bad("net", denoise, Returns(out)) for out in (None, (X, X), X[:1], X.long(), X[..., :4], 0.0)),
    bad("net", FLOW.denoiser, None),
    bad("guidance", FLOW.denoiser, PLAIN, guidance=2.0),
    *(bad("guidance", FLOW.denoiser, UNET, label=LABEL, guidance=w) for w in (NAN, INF, "2", None)),
    *(bad("interval", FLOW.denoiser, UNET, interval=i) for i in ((0.5, 0.2), (-1.0, 1.0), (0.0, 2.0), (0.0, NAN), 0.5, (0.0,))),
    *(bad("rescale", FLOW.denoiser, UNET, rescale=r) for r in (-0.1, 1.5, NAN, "0")),
    *(bad("clip", FLOW.denoiser, UNET, clip=c) for c in (-1.0, 0.0, NAN, "1")),
    bad("label", FLOW.denoiser, UNET, label=torch.tensor([0, 9])),
    bad("label", FLOW.denoiser, UNET, label=torch.tensor([-1, 0])),
    bad("label", FLOW.denoiser, UNET, label=torch.tensor([0.0, 1.0])),
    bad("label", FLOW.denoiser, UNET, label=[0, 1]),
    bad("label", FLOW.denoiser, UNET, label=7),
    bad("negative_label", FLOW.denoiser, UNET, label=LABEL, guidance=2.0, negative_label=torch.tensor([0, 9])),
    bad("negative_label", FLOW.denoiser, UNET, label=LABEL, guidance=2.0, negative_label=torch.tensor([0])),
    bad("negative_label", FLOW.denoiser, UNET, label=LABEL, guidance=2.0, negative_label=1),
    bad("guide", FLOW.denoiser, UNET, label=LABEL, guidance=2.0, guide="runs/weak"),
    # Likelihoods.
    bad("denoise", likelihood.log_likelihood, None, X, TIMES),
    bad("times", likelihood.log_likelihood, ZEROS, X, TIMES),
    bad("times", likelihood.log_likelihood, ZEROS, X, torch.tensor([0.1, 0.9])),
    bad("times", likelihood.log_likelihood, ZEROS, X, None),
    bad("t", likelihood.log_likelihood, ZEROS, X, torch.tensor([1.0, NAN, 0.1])),
    bad("x", likelihood.log_likelihood, ZEROS, X.long(), TIMES[:2]),
    bad("divergence", likelihood.log_likelihood, ZEROS, X, TIMES[:2], divergence="trace"),
    bad("key", likelihood.log_likelihood, ZEROS, X, TIMES[:2], divergence="hutchinson", key=KEY[:1]),
    bad("denoise", likelihood.vlb, None, X, TIMES[:2]),
    bad("times", likelihood.vlb, ZEROS, X, TIMES),
    bad("x0", likelihood.vlb, ZEROS, None, TIMES[:2]),
    # Settings.
    *(
        bad(name, Sampling, **{name: value})
        for name, values in {
            "guidance": (NAN, INF, "2", None),
            "interval": ((0.5, 0.2), 0.5, (NAN, 1.0), ("0", "1")),
            "rescale": (-1.0, 2.0, NAN, "x"),
            "negative": (1.5, ["cat"]),
            "steps": (0, -1, 2.5, "10", None, 10**9, math.inf),
            "sampler": ("eulr", None, 5),
            "times": ("cosine", None),
            "seed": (-1, 0.5, 2**63, "0", None),
        }.items()
        for value in values
    ),
    bad("z", CONV_VAE.decode, torch.zeros(2, 3)),
]
