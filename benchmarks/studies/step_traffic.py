"""Operations and bytes of a whole training step of ddpm-cifar10: diffusers' loop, the same after `fastgen.optimize`, and ours.

    python -m benchmarks.studies.step_traffic [--json FILE]

As benchmarks.studies.model_traffic counts them, on fake tensors, in the second step, when the optimizer's state is there. An
operation on a list of tensors, as of PyTorch's foreach optimizer, counts as one, and so does each of fastgen's. On a GPU the
former are a launch for every few dozen tensors, and fastgen's optimizer is three in all. All is in fp32; fastgen's step also in
bf16, with weights that autocast casts and with those of precision bf16_weights, where casts are those that autocast makes on a
CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import fastgen
from benchmarks.report.report import markdown
from benchmarks.studies.model_traffic import Count, Counter, command, ddpm_cifar10
from fastgen import noise_streams
from fastgen.device import cast
from fastgen.functional import noise_key
from fastgen.models.diffusers_unet import DiffusersUNet
from fastgen.optim import AdamWEMA
from fastgen.training.train import train_step
from fastgen_kernels.dispatch import on_fake_tensors

PARTS = PRODUCTS, NETWORK, LOSS, OPTIMIZER = "convolutions, products", "the network's others", "noise, loss", "clip, AdamW, EMA"
Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
Step = Callable[[], None]
Make = Callable[[nn.Module, Tensor, Counter], Step]


@dataclass(frozen=True)
class Row:
    """A part of one training step."""

    step: str
    part: str
    operations: int
    bytes: int


def by_diffusers(model: nn.Module, images: Tensor, counter: Counter) -> Step:
    """As diffusers' training examples do. foreach is what PyTorch chooses on a GPU."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler, ema = DDPMScheduler(), EMAModel(model.parameters(), use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, foreach=True)

    def step() -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        pred = model(scheduler.add_noise(images, noise, t), t).sample
        F.mse_loss(pred, noise).backward()
        counter.part = OPTIMIZER
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        with unset_fake_temporarily():  # the numbers of the parameters' steps lie on the host
            optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

    return step


def by_fastgen(model: nn.Module, images: Tensor, counter: Counter, precision: str) -> Step:
    """As fastgen.training.train does; images are floats, as diffusers' loop takes them."""
    from diffusers import DDPMScheduler

    parameters = list(cast(model, precision).parameters())
    with unset_fake_temporarily():  # a schedule is made of numbers
        scheduler = DDPMScheduler()
        net, diffusion = DiffusersUNet(model, scheduler), fastgen.Diffusion.from_scheduler(scheduler)
    objective = fastgen.DiffusionObjective(net, diffusion)
    lr = torch.tensor(1e-4)
    optimizer = AdamWEMA(parameters, lr, clip=1.0, ema=0.9999)

    def begin(*_: object) -> None:
        """The one operation that follows reads the gradients twice, first for their norm, and weights that are copies never."""
        counter.part = OPTIMIZER
        again = sum(p.grad.nbytes for p in parameters if p.grad is not None)
        unread = sum(p.nbytes for p in parameters if p.dtype != torch.float32)
        counter.parts[OPTIMIZER] += Count(0, again - unread, 0, again - unread)

    optimizer.register_step_pre_hook(begin)

    def step() -> None:
        key = noise_key(0, noise_streams.NOISE, 0, len(images))
        counter.part = OPTIMIZER
        lr.fill_(1e-4)
        counter.part = LOSS
        train_step(objective, optimizer, images, None, key, precision=precision)

    return step


STEPS: dict[str, tuple[Make, bool]] = {
    "diffusers": (by_diffusers, False),
    "diffusers, optimize": (by_diffusers, True),
    "fastgen": (partial(by_fastgen, precision="fp32"), True),
    "fastgen, bf16": (partial(by_fastgen, precision="bf16"), True),
    "fastgen, bf16_weights": (partial(by_fastgen, precision="bf16_weights"), True),
}


def rows(name: str, build: Build = ddpm_cifar10) -> Iterator[Row]:
    """The parts of a step, a name in STEPS."""
    make, optimized = STEPS[name]
    counter = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), on_fake_tensors():
        model, (images, *_) = build()
        if optimized:  # in channels_last, as it is on a GPU
            fastgen.optimize(model, channels_last=True)
            images = images.to(memory_format=torch.channels_last)
        step = make(model, images, counter)
        step()
        counter.parts.clear()
        counter.part = LOSS
        with counter, watched(model, counter):
            step()
    network = counter.parts.pop(NETWORK)
    yield Row(name, PRODUCTS, network.operations - network.operations_outside, network.bytes - network.bytes_outside)
    yield Row(name, NETWORK, network.operations_outside, network.bytes_outside)
    for part in (LOSS, OPTIMIZER):
        yield Row(name, part, counter.parts[part].operations, counter.parts[part].bytes)


@contextmanager
def watched(model: nn.Module, counter: Counter) -> Iterator[None]:
    """Inside, what the model computes is counted as the network's: forward, and backward from its output's gradient on."""

    def enter(*_: object) -> None:
        counter.part = NETWORK

    def leave(model: nn.Module, inputs: object, output: tuple[Tensor]) -> None:
        output[0].register_hook(enter)
        counter.part = LOSS

    handles = model.register_forward_pre_hook(enter), model.register_forward_hook(leave)
    yield
    for handle in handles:
        handle.remove()


def table(found: list[Row]) -> list[str]:
    """Operations and GB of each part, as Markdown."""
    cells = []
    for name in dict.fromkeys(row.step for row in found):
        counts = [(row.operations, row.bytes) for row in found if row.step == name]
        counts.append((sum(n for n, _ in counts), sum(size for _, size in counts)))
        cells.append([name, *(f"{n:,}, {size / 1e9:.2f}" for n, size in counts)])
    return markdown(["a step's operations, GB", *PARTS, "in all"], cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    def find() -> list[Row]:
        return [row for name in STEPS for row in rows(name)]

    command("python -m benchmarks.studies.step_traffic", __doc__, arguments, find, table)


if __name__ == "__main__":
    main()
