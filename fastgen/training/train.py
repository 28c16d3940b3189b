"""The recipe of training, read top to bottom: data, loss, backward, step, EMA."""

import copy
import math
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastgen import noise_streams
from fastgen.config.files import save_yaml
from fastgen.config.schema import TrainConfig
from fastgen.cuda_graph import WARM_UP, Graphed
from fastgen.data.augment import augment
from fastgen.device import AUTOCAST_DTYPES, cast, place, resolve_device, resolve_precision
from fastgen.errors import expect, is_number, is_whole
from fastgen.functional import at, noise_key
from fastgen.interchange.init_from import load_weights, starting_from
from fastgen.models.build import is_own, make_model, make_objective
from fastgen.optim import AdamWEMA
from fastgen.runs import checkpoint
from fastgen.runs.run import describe
from fastgen.training.data import (
    describe_data,
    digest_of,
    ended_reader,
    expecting_readers,
    open_training_data,
    report_broken,
    sized,
)
from fastgen.training.heartbeat import heartbeat
from fastgen.training.host import Interruption, keep_freed_memory
from fastgen.training.lock import locked
from fastgen.training.metrics_log import expect_writer, plot_loss
from fastgen.training.preview import Preview
from fastgen.training.progress import Progress, attempt, expect_finite, report_changes
from fastgen.training.ranks import (
    Vote,
    accumulating,
    agreed,
    cores,
    distribute,
    expect_own_device,
    gather,
    gathered,
    joined,
    mark,
    mean,
    rank,
    restarted,
    shard,
    world,
)
from fastgen.training.state import data_of, expect_new, note_settings, restore_state, save_state

TIME_IS_UP = 1  # what a rank votes to stop for, besides signals, whose numbers are larger


@dataclass(frozen=True)
class Outcome:
    """How training ended: the steps that are done, the signal that stopped it early, if one did, and whether this process drew
    loss.png, which needs matplotlib."""

    step: int
    signal: int | None
    plotted: bool = False


@joined()
def train(config: TrainConfig, out: Path, *, resume: bool = False, init_from: Path | None = None) -> Outcome:
    """Trains what the configuration describes up to `config.steps`, or until SIGINT, SIGTERM or `config.max_minutes` stop it,
    which saves. `out` becomes the run's folder; with `resume` it is one, and training goes on from its last checkpoint. With
    `init_from` it begins with the weights of a run of the same model, or with a UNet that diffusers wrote, see `starting_from`.

    In each of the processes that torchrun starts it does a share of every batch; the first process alone writes `out`, which all
    must see. Where torchrun starts them again, they go on from the last checkpoint by themselves, see `restarted`.

    A start that was stopped before its first checkpoint is begun again. Settings that `resume` changes are said, and kept with
    their step in history.jsonl. A picture that cannot be drawn does not stop training.

    Raises ValueError for a configuration that does not fit the data or the weights, a folder that is in use or that another
    process trains into, fewer `steps` than are done, or a checkpoint that is missing or corrupt; FloatingPointError where the
    loss is no longer finite; OSError where the disk is full, ChildProcessError where a process that reads data ended.
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
        torch.set_num_threads(min(config.threads, cores()))
    device = resolve_device(config.device)
    expect_own_device(config.device, device)
    precision = resolve_precision(device, config.precision)
    graphed = use_graph(config, device)
    if device.type == "cpu":
        keep_freed_memory()

    config, chosen = sized(config)
    if chosen and rank() == 0:
        print(chosen)
    data, held_out, values = open_training_data(config, out if resume else None)
    description = describe(config, data.shape, data.num_classes, data.classes, values)
    digest = digest_of(data, device, config.data.workers)

    torch.manual_seed(config.seed)
    model = make_model(description)
    if init_from is not None and not resume:
        load_weights(model, init_from, description)
    sharded = config.shard and world() > 1
    model = place(model, device, channels_last=not sharded)  # FSDP2 takes no other strides
    averaged = copy.deepcopy(model).eval().requires_grad_(False)  # what is drawn from
    if sharded:
        shard(averaged, device, free=False)
    objective = make_objective(config, cast(model, precision))
    if config.compile:
        objective.compile()
    objective = distribute(objective, device, shards=sharded)
    lr = torch.tensor(config.lr, device=device)  # where a CUDA graph can read it
    optimizer = AdamWEMA(model.parameters(), lr, config.betas, weight_decay=config.weight_decay, clip=config.clip, ema=config.ema)
    if precision == "bf16_weights":
        optimizer.load_master_state_dict(model, averaged.state_dict())  # as they were before they were cast
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    if rank() > 0:
        torch.manual_seed(config.seed + rank())  # of dropout, which is to differ

    share = config.batch_size // world()
    samples = range(rank() * share, (rank() + 1) * share)  # of each batch, this rank's
    flip, shift = config.data.flip, config.data.shift

    def update(image: Tensor, label: Tensor | None, key: Tensor) -> Tensor:
        """The loss and the step that follows from it, of the weights and their average: all that a CUDA graph records."""
        if flip or shift:
            image = augment(image, at(key, stream=noise_streams.AUGMENT), flip=flip, shift=shift)
        accumulation = config.accumulation
        return train_step(objective, optimizer, image, label, key, accumulation=accumulation, precision=precision, scaler=scaler)

    run_step = Graphed(update, warm_up=WARM_UP) if graphed else update
    averaged_objective = make_objective(config, averaged).eval()
    preview = Preview(config, out / "samples", averaged, averaged_objective, data, held_out, device, values)
    reported = len(data.broken)
    losses: list[Tensor] = []
    stop, vote = 0, Vote() if world() > 1 else None

    def save() -> None:
        progress.settle()
        if losses:
            expect_finite(mean(torch.stack(losses).mean()).item(), step)
        save_state(out, step, model, optimizer, description | {"data": digest}, config.keep, scaler)

    def is_seen(step: int) -> bool:
        """Whether samples are drawn at this step, after its checkpoint, which they must not endanger."""
        return step % config.sample_every == 0 or step == config.steps

    def look() -> None:
        averaged.load_state_dict(optimizer.ema_state_dict(model))
        with gathered(averaged):
            if rank() == 0:
                progress.look(preview, step)

    with (
        expecting_readers(), locked(out, new=not resume), heartbeat(config.rank_timeout), Interruption() as interruption,
        ExitStack() as opened,
    ):  # fmt: skip
        step = 0
        if resume:
            step = restore_state(out, model, optimizer, description, scaler)
            expect("steps", config.steps, config.steps >= step, f"at least {step}, which the run has done")
        else:
            agreed(lambda: expect_new(out))
        saved = step if resume else None
        if rank() == 0:
            if resume:
                checkpoint.drop_old(out / "checkpoints", config.keep)  # as the process that was killed would have
                report_changes(step, note_settings(out, step, config), other_data=digest != (data_of(out) or digest))
            save_yaml(config, out / "config.yaml")
            (out / "samples").mkdir(exist_ok=True)
            mark(out)
            report_broken(data)
        batches = data.batches(
            share,
            seed=config.seed,
            start=step * config.batch_size,
            device=device,
            workers=config.data.workers,
            rank=rank(),
            world=world(),
        )
        opened.callback(getattr(batches, "close", lambda: None))  # ends the processes that read for it
        progress = opened.enter_context(closing(Progress(out, step, config)))

        progress.announce(describe_data(data, held_out), averaged, precision, device)
        if step > 0 and is_seen(step) and gather(not (out / "samples" / f"{step:08d}.png").exists())[0]:
            look()  # the process was killed after the checkpoint
        first = step
        while step < config.steps:
            stop = interruption.signal or int(time.monotonic() >= deadline)
            if vote is not None:
                stop = vote(stop)
            if stop:
                break

            try:
                image, label = next(batches)
            except RuntimeError as error:
                if not (ended_reader(error) and interruption.signal and vote is None):
                    raise
                stop = interruption.signal  # it came before the process that reads could ignore it
                break
            began = time.monotonic()
            key = noise_key(config.seed, noise_streams.NOISE, step, samples, device)
            for group in optimizer.param_groups:
                group["lr"].fill_(learning_rate(config, step))
            losses.append(run_step(image, label, key))
            step += 1
            if step == first + 1 and device.type == "cpu":  # a GPU's is not done yet
                progress.first_step(time.monotonic() - began, config.steps - step)

            progress.bar.update()
            if progress.coming is not None:
                progress.settle(wait=False)

            if step % config.log_every == 0 or step == config.steps:
                progress.loss(losses, images=len(losses) * config.batch_size, step=step, lr=learning_rate(config, step - 1))
                losses = []

            if step % config.checkpoint_every == 0 or step == config.steps:
                save()
                saved = step

            if is_seen(step):
                look()

        if vote is not None:
            vote.close()
        if step != saved:
            save()

        if len(data.broken) > reported:  # some are met on the way
            report_broken(data)
        plotted = rank() == 0 and attempt("loss.png", lambda: plot_loss(out / "metrics.jsonl", out / "loss.png"))
    return Outcome(step, stop if stop > TIME_IS_UP else None, bool(plotted))


def train_step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    label: Tensor | None,
    key: Tensor,
    *,
    accumulation: int = 1,
    clip: float = 0.0,
    precision: str = "auto",
    scaler: GradScaler | None = None,
) -> Tensor:
    """One optimizer step on the batch's mean loss, which is returned, 0-dim fp32, without waiting for the device.

    objective: gives each sample's loss, (N,) fp32, such as `fastgen.DiffusionObjective` or `fastgen.VAEObjective`.
    x: (N, ...) as the objective takes it. label: int64 (N,) or None.
    key: int64 (N, 4) of `fastgen.functional.noise_key`, what the objective draws from.
    accumulation: parts that the batch is computed in, one after another, a divisor of N.
    clip: the largest norm of the gradient, 0 for none or where the optimizer clips.
    precision: "auto", "bf16", "bf16_weights", for a model that was `cast` to it, "fp16" or "fp32", see `fastgen.device`.
    scaler: scales the gradients of fp16, which would underflow, and skips a step where they are not finite; without one "auto" is
        never fp16.

    Raises TypeError for an x that is no tensor; ValueError for another precision, "fp16" without a scaler, a clip that is
    negative or not finite, and an `accumulation` that does not divide N: ranks exchange their gradients in the last part, which
    must be there.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (N, ...), got {type(x).__name__}")
    divides = is_whole(accumulation, 1, max(1, len(x))) and len(x) % accumulation == 0
    expect("accumulation", accumulation, divides, f"a divisor of the batch's {len(x)} samples")
    expect("clip", clip, is_number(clip, 0), "a finite number >= 0")
    given, precision = precision, resolve_precision(x.device, precision)
    if given == "auto" and precision == "fp16" and scaler is None:
        precision = "fp32"
    if scaler is None:
        expect("scaler", scaler, precision != "fp16", "a torch.amp.GradScaler with precision fp16")
        scaler = GradScaler(x.device.type, enabled=False)

    def backward(x_part: Tensor, label_part: Tensor | None, key_part: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=AUTOCAST_DTYPES.get(precision), enabled=precision in AUTOCAST_DTYPES):
            loss = objective(x_part, label_part, key=key_part).sum() / len(x)
        scaler.scale(loss).backward()
        return loss.detach()

    if accumulation == 1:
        total = backward(x, label, key)
    else:
        labels = [None] * accumulation if label is None else label.chunk(accumulation)
        total = torch.zeros((), device=x.device)
        for i, part in enumerate(zip(x.chunk(accumulation), labels, key.chunk(accumulation), strict=True)):
            with accumulating(objective, last=i == accumulation - 1):
                total += backward(*part)
    if clip > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(objective.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then cosine decay to 0 at config.steps, or constant."""
    warmup = min(1.0, (step + 1) / (config.warmup + 1))
    decay = 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.lr_decay == "cosine" else 1.0
    return config.lr * warmup * decay


def use_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether a training step is to be a graph: for "auto" where nothing stands against it. Raises ValueError for "on" where it
    does."""
    against = None
    if device.type != "cuda":
        against = "the device is no GPU"
    elif world() > 1:
        against = "several ranks exchange gradients, which is not captured"
    elif not is_own(config):
        against = "the UNet is not fastgen's own, and may wait for the host"
    elif getattr(config.model, "checkpointing", False):
        against = "checkpointing saves the generators' state on the host"
    expect("cuda_graph", config.cuda_graph, config.cuda_graph != "on" or against is None, f"auto or off: {against}")
    return config.cuda_graph != "off" and against is None
