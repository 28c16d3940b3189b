"""Four ways to train more efficiently, measured on the 8x8 digits:

    python -m benchmarks.studies.training

compares stratified sampling of t, min-SNR weights, averages of the weights and recomputed activations over several seeds. It
writes docs/training.md, a table for each, docs/training.png, a plot, and benchmarks/results/training.json, every number behind
them, in about five minutes of two cores.
"""

import argparse
import copy
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import fastgen
from benchmarks.harness.environment import describe
from benchmarks.studies.digit_classifier import frechet_distance
from benchmarks.studies.report import AVERAGED, DOCS, RECORD, TIMES, report
from fastgen import noise_streams
from fastgen.config.presets import PRESETS
from fastgen.config.schema import DataConfig, TrainConfig, UNetConfig
from fastgen.diffusion.samplers import dpmpp_2m, uniform_times
from fastgen.functional import noise_key, philox_normal
from fastgen.optim import constant, power
from fastgen.training.footprint import footprint
from fastgen.training.train import learning_rate, train_step
from fastgen_kernels.adamw_ema import decay_at
from proof.record import read_json, write_json

SHAPE, CLASSES = (1, 8, 8), 10
MODEL = UNetConfig(channels=32, multipliers=(1,), blocks=1, attention_levels=(), groups=8, patch=2)


@dataclass(frozen=True)
class Variant:
    """A training's settings, as of DiffusionConfig and TrainConfig."""

    schedule: str = "rectified_flow"
    prediction: str = "flow"
    weighting: str = "uniform"
    times: str = "uniform"
    lr_decay: str = "cosine"


VARIANTS = {
    "uniform t": Variant(),
    "stratified t": Variant(times="stratified"),
    "low-discrepancy t": Variant(times="low_discrepancy"),
    "min-SNR": Variant(weighting="min_snr"),
    "v": Variant("cosine", "v"),
    "v, min-SNR": Variant("cosine", "v", "min_snr"),
    "constant lr": Variant(lr_decay="constant"),
}
AVERAGES = {"none": constant(0.0)} | {str(decay): constant(decay) for decay in (0.9, 0.97, 0.99)}
AVERAGES |= {f"power, width {width:.2f}": power(width) for width in (0.05, 0.10, 0.20)}
USUAL = "0.99"  # the preset's, for all that is not about averages


@dataclass(frozen=True)
class Size:
    """How much is done: enough for a result, or little, to see that it works."""

    seeds: int = 5
    steps: int = 400
    batch: int = 64
    drawn: int = 500
    draws: int = 48
    """Batches whose gradients are compared."""
    looks: int = 4
    """Times that each held-out digit is looked at, with another noise and t."""
    timed: int = 30
    """Steps with recomputation that are timed, and as many without."""


# Training and judging.


def objective_of(model: nn.Module, variant: Variant, batch: int, **changes: Any) -> fastgen.DiffusionObjective:
    """The loss of a variant for batches of so many images. changes: of its settings."""
    diffusion = fastgen.Diffusion(variant.schedule, variant.prediction, changes.pop("weighting", variant.weighting))
    settings = {"times": variant.times, "label_dropout": 0.1, "strata": batch} | changes
    return fastgen.DiffusionObjective(model, diffusion, **settings)


def network(seed: int, **changes: Any) -> fastgen.UNet:
    """MODEL with initial weights of a seed. changes: of its settings."""
    torch.manual_seed(seed)
    return fastgen.UNet(SHAPE[0], num_classes=CLASSES, **(asdict(MODEL) | changes))


def study(name: str, seed: int, size: Size) -> dict[str, Any]:
    """One training: what its averages draw on the way and at the end, and, of the baseline, how its gradients spread."""
    torch.set_num_threads(1)
    variant = VARIANTS[name]
    model = network(seed)
    objective = objective_of(model, variant, size.batch)
    config = TrainConfig(steps=size.steps, lr=3e-3, warmup=min(50, size.steps // 4), lr_decay=variant.lr_decay)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, config.betas, weight_decay=0.0, fused=True)
    followed = AVERAGES if name in AVERAGED else (USUAL,)
    averages = {kind: copy.deepcopy(model).eval().requires_grad_(False) for kind in followed}
    batches = fastgen.open_dataset("digits").batches(size.batch, seed=seed)
    marks = {size.steps // 4, size.steps // 2}
    curve: dict[int, dict[str, float]] = {}
    for step in range(size.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        image, label = next(batches)
        key = noise_key(seed, noise_streams.NOISE, step, size.batch)
        train_step(objective, optimizer, image, label, key, clip=1.0, precision="fp32")
        for kind, average in averages.items():
            follow(average, model, decay_at(torch.tensor(step + 1.0), AVERAGES[kind]).item())
        if step + 1 in marks:
            curve[step + 1] = judge(averages[USUAL], variant, size)
    ended = {kind: judge(average, variant, size) for kind, average in averages.items()}
    spread = (
        {times: gradients(model, Variant(times=times), seed, size) for times in TIMES.values()} if name == "uniform t" else {}
    )
    return {
        "variant": name,
        "seed": seed,
        "curve": curve | {size.steps: ended[USUAL]},
        "averages": ended,
        "gradients": spread,
    }


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay · average + (1 - decay) · weights, with the decay as it is at this step."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def judge(model: nn.Module, variant: Variant, size: Size) -> dict[str, float]:
    """frechet: the distance in pixels of samples from all digits. agreement: the share of them that a classifier of the real ones
    sees as the class that was asked for. held_out: the unweighted loss on digits that no training saw, with t spread evenly."""
    diffusion = fastgen.Diffusion(variant.schedule, variant.prediction)
    asked, key = torch.arange(size.drawn) % CLASSES, noise_key(0, noise_streams.START, 0, size.drawn)
    times = uniform_times(20)
    x = diffusion.schedule.sigma(times[0]) * philox_normal((size.drawn, *SHAPE), key)
    x0 = dpmpp_2m(diffusion.denoiser(model, label=asked), x, times)
    pixels = ((x0 + 1) / 2).clamp(0, 1).flatten(1)

    image, label = digits("test")
    image, label = image.repeat(size.looks, 1, 1, 1), label.repeat(size.looks)
    even = objective_of(model, variant, len(image), weighting="uniform", times="low_discrepancy", label_dropout=0.0)
    return {
        "frechet": frechet_distance(pixels, digits("all")[0].flatten(1) / 255),
        "agreement": float((classifier().predict(pixels.numpy()) == asked.numpy()).mean()),
        "held_out": even(image, label, key=noise_key(0, noise_streams.NOISE, 0, len(image))).mean().item(),
    }


@functools.cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 1, 8, 8), and labels (N,) of a split of the digits."""
    data = fastgen.open_dataset("digits", split=split)
    return next(data.batches(len(data)))


@functools.cache
def classifier() -> Any:
    """A support vector machine on the pixels of the training digits; it is right on 98% and more of the others."""
    from sklearn.svm import SVC

    image, label = digits("train")
    return SVC().fit(image.flatten(1) / 255, label)


def gradients(model: nn.Module, variant: Variant, seed: int, size: Size) -> dict[str, float]:
    """Over batches of images, noise and t: the total variance of the gradient, and the deviation of the loss."""
    objective, data = objective_of(model, variant, size.batch), fastgen.open_dataset("digits")
    batches = data.batches(size.batch, seed=seed + 1000)
    found, losses = [], []
    for step in range(size.draws):
        image, label = next(batches)
        loss = objective(image, label, key=noise_key(seed + 1000, noise_streams.NOISE, step, size.batch)).mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        losses.append(loss.item())
    return {"gradient_variance": torch.stack(found).var(0).sum().item(), "loss_deviation": statistics.stdev(losses)}


def checkpointing(size: Size) -> dict[str, Any]:
    """Training with recomputed activations beside training without: the largest difference of their weights, the time of a step
    over the other's (the medians, steps in turn), and the bytes that footprint counts."""
    torch.set_num_threads(1)
    models = {on: network(0, checkpointing=on) for on in (False, True)}
    objectives = {on: objective_of(model, Variant(), size.batch) for on, model in models.items()}
    optimizers = {on: torch.optim.AdamW(model.parameters(), 1e-3, fused=True) for on, model in models.items()}
    batches = fastgen.open_dataset("digits").batches(size.batch)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for step in range(size.timed):
        image, label = next(batches)
        for on, objective in objectives.items():
            start = time.perf_counter()
            train_step(objective, optimizers[on], image, label, noise_key(0, step=step, samples=size.batch), precision="fp32")
            seconds[on].append(time.perf_counter() - start)
    pairs = zip(models[False].parameters(), models[True].parameters(), strict=True)
    return {
        "weights_differ_by": max((a - b).abs().max().item() for a, b in pairs),
        "time_ratio": statistics.median(seconds[True]) / statistics.median(seconds[False]),
        "activations": {
            "the study's model, batch 64": activations(TrainConfig(DataConfig("digits"), MODEL, batch_size=64), SHAPE, CLASSES),
            "folder32, batch 128": activations(PRESETS["folder32"], (3, 32, 32), None),
        },
    }


def activations(config: TrainConfig, shape: tuple[int, ...], num_classes: int | None) -> list[int]:
    """Bytes kept for backward in fp32, without and with checkpointing."""
    models = [replace(config.model, checkpointing=on) for on in (False, True)]
    return [footprint(replace(config, model=model), shape, num_classes, "fp32").activations for model in models]


def run(size: Size, over: Callable[..., Iterable[Any]] = map) -> dict[str, Any]:
    """The record; `over` is what maps the trainings, one after another or in processes."""
    jobs = [(name, seed, size) for seed in range(size.seeds) for name in VARIANTS]
    runs = list(over(study, *zip(*jobs, strict=True)))
    pixels, generator = digits("all")[0].flatten(1) / 255, torch.Generator().manual_seed(0)
    real = [torch.randperm(len(pixels), generator=generator)[: size.drawn] for _ in range(20)]
    return describe() | {
        "size": asdict(size),
        "floor": statistics.mean(frechet_distance(pixels[rows], pixels) for rows in real),
        "runs": runs,
        "checkpointing": checkpointing(size),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.training", description=__doc__.partition(":\n")[0])
    parser.parse_args(arguments)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        write_json(RECORD, run(Size(), pool.map))
    report(read_json(RECORD, None), DOCS)


if __name__ == "__main__":
    main()
