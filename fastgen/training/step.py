"""One optimizer step: its loss, its learning rate, and whether it is recorded as a CUDA graph."""

import math

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastgen.config.schema import TrainConfig
from fastgen.device import autocast, resolve_precision
from fastgen.errors import expect
from fastgen.models.build import is_own
from fastgen.training.ranks import world
from fastgen.training.sharding import accumulating


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

    x: (N, ...) as the objective takes it. label: (N,) or None. key: (N, 4), what the objective draws from. accumulation: parts
    that the batch is computed in, one after another. clip: the largest norm of the gradient, 0 for none or where the optimizer
    clips. precision: "auto", "bf16", "bf16_weights", for a model that was `cast` to it, "fp16" or "fp32", see `fastgen.device`.
    scaler: scales the gradients of fp16, which would underflow, and skips a step where they are not finite; without one "auto" is
    never fp16. Raises ValueError for "fp16" without one.
    """
    if scaler is None:
        expect("scaler", scaler, precision != "fp16", "a torch.amp.GradScaler with precision fp16")
        precision = "fp32" if resolve_precision(x.device, precision) == "fp16" else precision
        scaler = GradScaler(x.device.type, enabled=False)
    parts = zip(
        x.chunk(accumulation),
        [None] * accumulation if label is None else label.chunk(accumulation),
        key.chunk(accumulation),
        strict=True,
    )
    total = torch.zeros((), device=x.device)
    for i, (x_part, label_part, key_part) in enumerate(parts):
        with accumulating(objective, last=i == accumulation - 1):
            with autocast(x.device, precision):
                loss = objective(x_part, label_part, key=key_part).sum() / len(x)
            scaler.scale(loss).backward()
        total += loss.detach()
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
    against = _obstacle(config, device)
    expect("cuda_graph", config.cuda_graph, config.cuda_graph != "on" or against is None, f"auto or off: {against}")
    return config.cuda_graph != "off" and against is None


def _obstacle(config: TrainConfig, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "the device is no GPU"
    if world() > 1:
        return "several ranks exchange gradients, which is not captured"
    if not is_own(config):
        return "the UNet is not fastgen's own, and may wait for the host"
    if getattr(config.model, "checkpointing", False):
        return "checkpointing saves the generators' state on the host"
    return None
