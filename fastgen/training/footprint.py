"""How much memory a training step takes, counted on tensors without data: before a GPU is at hand, and for models of any size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.autograd.graph import saved_tensors_hooks

from fastgen.config.schema import TrainConfig
from fastgen.data.units import Values
from fastgen.device import autocast, cast
from fastgen.errors import expect
from fastgen.functional import noise_key
from fastgen.models.build import is_own, make_model, make_objective
from fastgen.runs.run import describe
from fastgen_kernels.dispatch import on_fake_tensors


@dataclass(frozen=True)
class Footprint:
    """Bytes that training holds at once, where forward ends and backward begins; `activations` are what it saved for backward.
    Gradients come to be as activations go."""

    parameters: int  # how many
    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments, and the masters of weights in bf16
    average: int  # and the copy of it that samples are drawn with
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def footprint(
    config: TrainConfig, shape: tuple[int, ...], num_classes: int | None, precision: str, values: Values | None = None
) -> Footprint:
    """The bytes that a training step of a configuration takes on one GPU, where every op runs its kernel.

    shape: (C, H, W) of images, or that of the values. num_classes: None without labels. precision: "fp32", "bf16", "bf16_weights"
    or "fp16", autocast as it is on a CPU, which casts nearly as CUDA's does. values: None for images.

    Raises ValueError for data that the model cannot take, and for a UNet of diffusers, which cannot be built without data.
    """
    expect("model", type(config.model).__name__, is_own(config), "a model of fastgen's own")
    description = describe(config, shape, num_classes, None if num_classes is None else [""] * num_classes, values)
    samples = config.batch_size // config.accumulation
    with FakeTensorMode(allow_non_fake_inputs=True), on_fake_tensors():
        model = cast(make_model(description), precision)
        with unset_fake_temporarily():  # a schedule is made of numbers
            objective = make_objective(config, model)
        x0 = torch.zeros(samples, *shape, dtype=torch.uint8) if values is None else torch.zeros(samples, *values.network_shape)
        labels = None if num_classes is None else torch.zeros(samples, dtype=torch.int64)
        with autocast(torch.device("cpu"), precision):
            activations = saved_bytes(lambda: objective(x0, labels, key=noise_key(0, samples=samples)).sum(), model)
    parameters = list(model.parameters())
    weights, state = sum(p.nbytes for p in parameters), sum(4 * p.numel() for p in parameters)
    masters = sum(4 * p.numel() for p in parameters if p.dtype != torch.float32)
    return Footprint(sum(p.numel() for p in parameters), weights, weights, 2 * state + masters, 2 * state, activations)


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """What forward() saves for backward, besides the model's own weights; memory that several tensors share counts once."""
    own = {_memory(x) for x in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        saved.setdefault(_memory(x), x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = forward()
    total = sum(x.untyped_storage().nbytes() for memory, x in saved.items() if memory not in own)
    del loss  # until here nothing is freed, whose place another could take
    return total


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata
