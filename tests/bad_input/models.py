"""Models, schedules, the process, the objective, and the settings that describe them."""

import dataclasses
import math

import torch
from torch import nn

import fastgen
from fastgen import schedules
from fastgen.config.files import from_dict
from fastgen.config.schema import TrainConfig
from tests.bad_input.judge import bad

NAN, INF = math.nan, math.inf
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "groups": 4, "attention_levels": ()}
CONV = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4}
UNET = fastgen.UNet(1, num_classes=3, **SMALL)
VAE = fastgen.VAE(16, 2)
CONV_VAE = fastgen.ConvVAE(1, 2, 8, **CONV)
FLOW = fastgen.Diffusion("rectified_flow")
OBJECTIVE = fastgen.DiffusionObjective(UNET, FLOW)
OPTIMIZER = fastgen.optim.AdamWEMA(UNET.parameters(), 1e-3)
X, T, KEY = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5), fastgen.functional.noise_key(0, samples=2)
LABEL = torch.tensor([0, 1])


def unet(**changes):
    return fastgen.UNet(**({"in_channels": 1} | SMALL | changes))


def conv_vae(**changes):
    return fastgen.ConvVAE(**({"in_channels": 1, "latent_dim": 2, "image_size": 8} | CONV | changes))


def loss_of(net):
    return fastgen.DiffusionObjective(net, FLOW)(X, None, key=KEY)


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, label=None, context=None):
        return self.value

    def __repr__(self):
        return f"net that returns {getattr(self.value, 'shape', self.value)}"


def train_step(*arguments, **keywords):
    fastgen.train_step(OBJECTIVE, OPTIMIZER, *arguments, **keywords)


def config(**values):
    return from_dict(values)


CASES = [
    # Constructors.
    *(
        bad(name, unet, **{name: value})
        for name, values in {
            "in_channels": (0, -1, 1.5, "1", None),
            "out_channels": (0, -1, 2.5),
            "channels": (0, -8, 8.0, None),
            "multipliers": ((), (0,), (1, -1), 2, "12", (1.5,), None),
            "blocks": (0, -1, 1.0),
            "groups": (0, -4, 3, 4.0, None),
            "head_dim": (0, -1, 3.5),
            "patch": (0, -2, 2.0),
            "num_classes": (-1, 0, 2.5, "ten"),
            "dropout": (-0.1, 1.0, NAN, "0"),
            "dims": (0, 4, 2.0),
            "attention_levels": ((5,), (-1,), 1, ("0",)),
        }.items()
        for value in values
    ),
    bad("head_dim", unet, attention_levels=(0,), head_dim=3),
    *(
        bad(name, fastgen.VAE, **({"input_dim": 16, "latent_dim": 2} | {name: value}))
        for name, values in {
            "input_dim": (0, -1, 2.5, "16", None, (4, 4)),
            "latent_dim": (0, -2, 1.5, None),
            "likelihood": ("mse", None),
            "std": (0.0, -1.0, NAN, INF, "1"),
        }.items()
        for value in values
    ),
    *(
        bad(name, conv_vae, **{name: value})
        for name, values in {
            "in_channels": (0, -1, 1.5),
            "latent_dim": (0, -1, 2.5),
            "image_size": (0, -8, 7, 8.0, (8, 8)),
            "channels": (0, -8),
            "multipliers": ((), (0, 1), 2),
            "blocks": (0, -1),
            "groups": (0, 3, -1),
            "likelihood": ("mse",),
            "std": (0.0, NAN),
        }.items()
        for value in values
    ),
    bad("input_dim", fastgen.DiffusionModel, 0),
    bad("input_dim", fastgen.DiffusionModel, -3),
    bad("input_dim", fastgen.DiffusionModel, 1.5),
    # What models are given.
    bad("x", UNET, None, T),
    bad("x", UNET, torch.zeros(2, 3, 8, 8), T),
    bad("x", UNET, torch.zeros(2, 8, 8), T),
    bad("x", UNET, X.long(), T),
    bad("x", unet(multipliers=(1, 1)), torch.zeros(2, 1, 7, 8), T),
    bad("t", UNET, X, torch.zeros(3)),
    bad("t", UNET, X, torch.tensor([1, 500])),
    bad("t", UNET, X, torch.tensor([1.0, 500.0])),
    bad("t", UNET, X, torch.tensor([NAN, 0.0])),
    bad("t", UNET, X, 0.5),
    bad("t", UNET, X, None),
    bad("label", UNET, X, T, torch.tensor([0.0, 1.0])),
    bad("label", UNET, X, T, torch.tensor([0, 4])),
    bad("label", UNET, X, T, torch.tensor([-1, 0])),
    bad("label", UNET, X, T, torch.tensor([0])),
    bad("label", UNET, X, T, torch.tensor([[0, 1]])),
    bad("label", UNET, X, T, [0, 1]),
    bad("label", unet(), X, T, LABEL),
    bad("x", VAE, torch.zeros(2, 15)),
    bad("x", VAE, torch.zeros(2, 2, 4)),
    bad("x", VAE, None),
    bad("x", VAE, torch.zeros(2, 16, dtype=torch.int64)),
    bad("x", VAE.elbo, torch.full((2, 16), 255.0)),
    bad("x", VAE.elbo, torch.full((2, 16), NAN)),
    bad("x", VAE.anomaly_score, torch.zeros(2, 15)),
    bad("z", VAE.decode, torch.zeros(2, 3)),
    bad("z", VAE.decode, None),
    bad("n", VAE.sample, 0),
    bad("n", VAE.sample, -1),
    bad("n", VAE.sample, 2.5),
    bad("k", VAE.log_likelihood, torch.zeros(2, 16), 0),
    bad("k", VAE.log_likelihood, torch.zeros(2, 16), 1.5),
    bad("x", CONV_VAE, torch.zeros(2, 1, 8, 7)),
    bad("x", CONV_VAE, torch.zeros(2, 64)),
    bad("x", CONV_VAE, None),
    bad("z", CONV_VAE.decode, torch.zeros(2, 3)),
    # Schedules.
    *(
        bad(name, function, **{name: value})
        for function, name, values in (
            (schedules.linear, "steps", (0, -1, 2.5, "10", None)),
            (schedules.linear, "beta_start", (-1e-4, NAN, 0.5, "0")),
            (schedules.linear, "beta_end", (1e-5, 1.5, NAN)),
            (schedules.cosine, "steps", (0, 1.5)),
            (schedules.cosine, "offset", (-1.0, NAN, INF, "0")),
            (schedules.sigmoid, "steps", (0,)),
            (schedules.sigmoid, "tau", (0.0, -1.0, NAN)),
            (schedules.sigmoid, "start", (3.0, NAN, INF)),
            (schedules.sigmoid, "end", (-4.0, NAN)),
            (schedules.RectifiedFlow, "shift", (0.0, -1.0, NAN, INF, "3", None)),
            (schedules.EDM, "sigma_min", (0.0, -1.0, 100.0, NAN, None)),
            (schedules.EDM, "sigma_max", (0.001, INF, NAN, "80")),
            (schedules.EDM, "rho", (0.0, -7.0, NAN, None)),
        )
        for value in values
    ),
    bad("betas", schedules.Discrete, torch.zeros(10)),
    bad("betas", schedules.Discrete, torch.zeros(0)),
    bad("betas", schedules.Discrete, torch.full((3,), 1.5)),
    bad("betas", schedules.Discrete, torch.tensor([0.1, NAN])),
    bad("betas", schedules.Discrete, torch.zeros(2, 2)),
    bad("betas", schedules.Discrete, [0.1, 0.2]),
    bad("betas", schedules.Discrete, torch.tensor([0, 1])),
    bad("chain", schedules.zero_terminal_snr, schedules.RectifiedFlow()),
    bad("chain", schedules.zero_terminal_snr, None),
    bad("chain", schedules.zero_terminal_snr, schedules.linear(1)),
    *(
        bad("t", schedule.marginal, t)
        for schedule in (schedules.linear(10), schedules.RectifiedFlow(), schedules.EDM())
        for t in (torch.tensor([1.5]), torch.tensor([-0.1]), torch.tensor([NAN]), torch.tensor([500]), 0.5, None)
    ),
    bad("t", schedules.RectifiedFlow(2.0).log_snr, torch.tensor([2.0])),
    bad("t", schedules.linear(10).log_snr, torch.tensor([-1.0])),
    bad("log_snr", schedules.linear(10).time, torch.tensor([NAN])),
    bad("log_snr", schedules.EDM().time, 1.0),
    # The process and the objective.
    bad("schedule", fastgen.Diffusion, "ddpm"),
    bad("schedule", fastgen.Diffusion, None),
    bad("schedule", fastgen.Diffusion, schedules.linear),
    bad("prediction", fastgen.Diffusion, "linear", "noise"),
    bad("prediction", fastgen.Diffusion, "linear", None),
    bad("prediction", fastgen.Diffusion, "linear_zero_snr", "eps"),
    bad("weighting", fastgen.Diffusion, "linear", "eps", "snr"),
    bad("weighting", fastgen.Diffusion, "linear", "eps", 5),
    bad("scheduler", fastgen.Diffusion.from_scheduler, None),
    bad("scheduler", fastgen.Diffusion.from_scheduler, 7),
    bad("scheduler", fastgen.Diffusion.from_scheduler, "nowhere"),
    bad("scheduler", fastgen.Diffusion.from_scheduler, {"_class_name": "KDPM2"}),
    bad("beta_schedule", fastgen.Diffusion.from_scheduler, {"beta_schedule": "odd"}),
    bad("prediction_type", fastgen.Diffusion.from_scheduler, {"beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2,
    "prediction_type": "odd"}), bad("net", fastgen.DiffusionObjective, None, FLOW),
    bad("diffusion", fastgen.DiffusionObjective, UNET, None),
    bad("diffusion", fastgen.DiffusionObjective, UNET, "linear"),
    bad("times", fastgen.DiffusionObjective, UNET, FLOW, times="random"),
    bad("loss", fastgen.DiffusionObjective, UNET, FLOW, loss="l2"),
    bad("label_dropout", fastgen.DiffusionObjective, UNET, FLOW, label_dropout=1.5),
    bad("label_dropout", fastgen.DiffusionObjective, UNET, FLOW, label_dropout=NAN),
    bad("label_dropout", fastgen.DiffusionObjective, UNET, FLOW, label_dropout="0.1"),
    bad("vae", fastgen.VAEObjective, None),
    bad("vae", fastgen.VAEObjective, UNET),
    bad("x0", OBJECTIVE, None, LABEL, key=KEY),
    bad("x0", OBJECTIVE, X.long(), LABEL, key=KEY),
    bad("x0", OBJECTIVE, X * NAN, LABEL, key=KEY),
    bad("label", OBJECTIVE, X, LABEL.float(), key=KEY),
    bad("label", OBJECTIVE, X, LABEL[:1], key=KEY),
    bad("label", OBJECTIVE, X, LABEL + 10, key=KEY),
    bad("key", OBJECTIVE, X, LABEL, key=KEY[:1]),
    bad("key", OBJECTIVE, X, LABEL, key=7),
    bad("net", loss_of, Returns(None)),
    bad("net", loss_of, Returns((X, X))),
    bad("net", loss_of, Returns(X[:1])),
    bad("net", loss_of, Returns(X.long())),
    bad("accumulation", train_step, X, LABEL, KEY, accumulation=0),
    bad("accumulation", train_step, X, LABEL, KEY, accumulation=3),
    bad("accumulation", train_step, X, LABEL, KEY, accumulation=2.0),
    bad("precision", train_step, X, LABEL, KEY, precision="fp8"),
    bad("precision", train_step, X, LABEL, KEY, precision=None),
    bad("clip", train_step, X, LABEL, KEY, clip=-1.0),
    bad("clip", train_step, X, LABEL, KEY, clip=NAN),
    bad("clip", train_step, X, LABEL, KEY, clip="1"),
    bad("scaler", train_step, X, LABEL, KEY, precision="fp16"),
    bad("key", train_step, X, LABEL, KEY[:1]),
    bad("label", train_step, X, LABEL[:1], KEY),
    bad("x", train_step, None, LABEL, KEY),
    # Settings in Python and in files.
    *(
        bad(name, TrainConfig, **{name: value})
        for name, values in {
            "steps": (0, -1, 10.5, "10", None, True),
            "batch_size": (0, 1.5),
            "accumulation": (0, 3),
            "lr": (0.0, -1.0, NAN, INF, "1e-3"),
            "lr_decay": ("linear", None),
            "warmup": (-1, 1.5),
            "betas": ((0.9, 1.0), (NAN, 0.9), (0.9,), 0.9),
            "weight_decay": (-1.0, NAN),
            "clip": (-1.0, NAN),
            "ema": (1.0, -0.1, NAN, "0.9"),
            "precision": ("fp8", None),
            "device": (None, 0),
            "seed": (-1, 0.5, 2**63),
            "threads": (0, 1.5),
            "max_minutes": (0.0, NAN, "5"),
            "rank_timeout": (0.0, NAN, "5"),
            "log_to": ("stdout",),
            "keep": (0, 1.5),
            "data": (None, "mnist"),
            "model": (None, "unet"),
            "diffusion": (None, "flow"),
        }.items()
        for value in values
    ),
    *(
        bad(f"{part}.{name}", config, **{part: {name: value}})
        for part, settings in {
            "data": {"source": (3, None, ["a"]), "kind": ("rows",), "size": (0, 1.5, "32"), "channels": (2,), "flip": (1, "yes"),
                     "shift": (-1, 0.5), "workers": (-1,)},
            "model": {"channels": (0, 1.5), "multipliers": ([], [0], 2, ["1"]), "groups": (0,), "dropout": (1.0, "x"),
                      "attention_levels": ([-1], 1), "checkpointing": (1,)},
            "diffusion": {"schedule": ("ddpm", None), "prediction": ("noise",), "weighting": (7,), "times": ("random",),
                          "loss": ("l2",), "label_dropout": (2.0, NAN, "x"), "condition": ("text",), "factor": (1, 2.5)},
        }.items()
        for name, values in settings.items()
        for value in values
    ),
    bad("model.kind", config, model={"kind": "gan"}),
    bad("model.latent_dim", config, model={"kind": "vae", "latent_dim": 0}),
    bad("model.std", config, model={"kind": "vae", "std": NAN}),
    bad("model.groups", config, model={"kind": "conv_vae", "groups": 0}),
    bad("model.multipliers", config, model={"kind": "conv_vae", "multipliers": []}),
    bad("diffusion", dataclasses.replace, TrainConfig(), diffusion=None),
]  # fmt: skip
