"""The recipe of training, read top to bottom: data, loss, backward, step, EMA."""

import copy
import math
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from fastgen import noise_streams
from fastgen.config.files import save_yaml
from fastgen.config.schema import TrainConfig
from fastgen.cuda_graph import WARM_UP, Graphed
from fastgen.data import ImageDataset
from fastgen.data.augment import augment
from fastgen.device import cast, place, resolve_device, resolve_precision
from fastgen.errors import expect
from fastgen.functional import at, noise_key
from fastgen.interchange.init_from import load_weights, starting_from
from fastgen.models.build import make_model, make_objective
from fastgen.optim import AdamWEMA
from fastgen.runs.run import describe
from fastgen.training.allocator import keep_freed_memory
from fastgen.training.data import open_training_data
from fastgen.training.interruption import Interruption
from fastgen.training.metrics_log import plot_loss
from fastgen.training.preview import Preview
from fastgen.training.progress import Progress, expect_finite
from fastgen.training.ranks import Vote, barrier, expect_own_device, joined, mark, mean, rank, restarted, world
from fastgen.training.sharding import distribute, gathered, shard
from fastgen.training.state import restore_state, save_state
from fastgen.training.step import learning_rate, train_step, use_graph
from fastgen.training.writers import expect_writer

TIME_IS_UP = 1  # what a rank votes to stop for, besides signals, whose numbers are larger


@dataclass(frozen=True)
class Outcome:
    """How training ended: the steps that are done, and the signal that stopped it early, if one did."""

    step: int
    signal: int | None


@joined()
def train(config: TrainConfig, out: Path, *, resume: bool = False, init_from: Path | None = None) -> Outcome:
    """Trains what the configuration describes up to `config.steps`, or until SIGINT, SIGTERM or `config.max_minutes` stop it,
    which saves. `out` becomes the run's folder; with `resume` it is one, and training goes on from its last checkpoint. With
    `init_from` it begins with the weights of a run of the same model, or with a UNet that diffusers wrote, see `starting_from`.

    In each of the processes that torchrun starts it does a share of every batch; the first process alone writes `out`, which all
    must see. Where torchrun starts them again, they go on from the last checkpoint by themselves, see `restarted`.

    Raises ValueError for a configuration that does not fit the data or the weights, a folder that is in use, or a checkpoint that
    is missing or corrupt; FloatingPointError where the loss is no longer finite.
    """
    if init_from is not None:
        expect("init_from", str(init_from), not resume, "none with resume, which goes on with the run's own weights")
        config = starting_from(config, init_from)
    resume = resume or restarted(out)
    shares = world() * config.accumulation
    divides = config.batch_size % shares == 0
    expect("batch_size", config.batch_size, divides, f"a multiple of {shares}, {world()} ranks times the accumulation")
    expect_writer(config.log_to)
    deadline = time.monotonic() + 60 * (config.max_minutes or math.inf)
    if config.threads is not None:
        torch.set_num_threads(min(config.threads, os.cpu_count() or 1))
    device = resolve_device(config.device)
    expect_own_device(config.device, device)
    precision = resolve_precision(device, config.precision)
    graphed = use_graph(config, device)
    if device.type == "cpu":
        keep_freed_memory()

    data, held_out, values = open_training_data(config, out if resume else None)
    description = describe(config, data.shape, data.num_classes, data.classes, values)

    torch.manual_seed(config.seed)
    model = make_model(description)
    if init_from is not None and not resume:
        load_weights(model, init_from, description)
    shards = config.shard and world() > 1
    model = place(model, device, channels_last=not shards)  # FSDP2 takes no other strides
    averaged = copy.deepcopy(model).eval().requires_grad_(False)  # what is drawn from
    if shards:
        shard(averaged, device, free=False)
    objective = make_objective(config, cast(model, precision))
    if config.compile:
        objective.compile()
    objective = distribute(objective, device, shards=shards)
    lr = torch.tensor(config.lr, device=device)  # where a CUDA graph can read it
    optimizer = AdamWEMA(model.parameters(), lr, config.betas, weight_decay=config.weight_decay, clip=config.clip, ema=config.ema)
    if precision == "bf16_weights":
        optimizer.load_master_state_dict(model, averaged.state_dict())  # as they were before they were cast
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    if rank() > 0:
        torch.manual_seed(config.seed + rank())  # of dropout, which is to differ

    step = restore_state(out, model, optimizer, description, scaler) if resume else claim(out)
    saved = step if resume else None
    if rank() == 0:
        save_yaml(config, out / "config.yaml")
        mark(out)
        report_broken(data)
    reported = len(data.broken)
    judged = make_objective(config, averaged).eval()
    preview = Preview(config, out / "samples", averaged, judged, data, held_out, device, values)
    rows = config.batch_size // world()
    samples = range(rank() * rows, (rank() + 1) * rows)  # of each batch
    batches = data.batches(
        rows,
        seed=config.seed,
        start=step * config.batch_size,
        device=device,
        workers=config.data.workers,
        rank=rank(),
        world=world(),
    )

    def update(image: Tensor, label: Tensor | None, key: Tensor) -> Tensor:
        """The loss and the step that follows from it, of the weights and their average: all that a CUDA graph records."""
        image = augment(image, at(key, stream=noise_streams.AUGMENT), flip=config.data.flip, shift=config.data.shift)
        settings: dict[str, Any] = {"accumulation": config.accumulation, "precision": precision, "scaler": scaler}
        return train_step(objective, optimizer, image, label, key, **settings)

    def save() -> None:
        progress.settle()
        if losses:
            expect_finite(mean(torch.stack(losses).mean()).item(), step)
        save_state(out, step, model, optimizer, description, config.keep, scaler)

    run_step = Graphed(update, warm_up=WARM_UP) if graphed else update
    losses: list[Tensor] = []
    stop, vote = 0, Vote()
    with Interruption() as interruption, closing(Progress(out, step, config)) as progress:
        while step < config.steps and not (stop := vote(interruption.signal or int(time.monotonic() >= deadline))):
            image, label = next(batches)
            key = noise_key(config.seed, noise_streams.NOISE, step, samples, device)
            for group in optimizer.param_groups:
                group["lr"].fill_(learning_rate(config, step))
            losses.append(run_step(image, label, key))
            step += 1
            progress.step()

            if step % config.log_every == 0 or step == config.steps:
                progress.loss(losses, images=len(losses) * config.batch_size, step=step, lr=learning_rate(config, step - 1))
                losses = []

            if step % config.sample_every == 0 or step == config.steps:
                averaged.load_state_dict(optimizer.ema_state_dict(model))
                with gathered(averaged):
                    progress.write(step=step, **(preview(step) if rank() == 0 else {}))

            if step % config.checkpoint_every == 0:
                save()
                saved = step

        vote.close()
        if step != saved:
            save()

    if len(data.broken) > reported:  # some are met on the way
        report_broken(data)
    if rank() == 0:
        plot_loss(out / "metrics.jsonl", out / "loss.png")
    return Outcome(step, stop if stop > TIME_IS_UP else None)


def report_broken(data: ImageDataset) -> None:
    """Names the images that could not be read and were replaced by others."""
    for name, reason in data.broken[:10]:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if len(data.broken) > 10:
        print(f"skipped {len(data.broken)} broken images in all", file=sys.stderr)


def claim(out: Path) -> int:
    """Makes `out` a new run's folder, at step 0. Raises ValueError where it holds a run, or anything else, already."""
    if (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise ValueError(f"out: {str(out)!r} already holds a run; add --resume to go on with it, or --out for another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.yaml").exists():
        raise ValueError(f"out: expected a new or empty folder, got {str(out)!r}, which holds {next(out.iterdir()).name}")
    barrier()  # all have looked
    if rank() > 0:
        return 0
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: expected a place that can be written, got {str(out)!r}: {error.strerror}") from None
    return 0
