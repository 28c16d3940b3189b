"""Operations and bytes of whole models, untouched and after `fastgen.optimize`: no GPU is needed, and no memory for the models.

    python -m benchmarks.studies.model_traffic [--json FILE]

The models run on fake tensors, in fp32; in 16 bits every byte is a half. An operation counts the bytes of its inputs and outputs
once, so the second read of a group norm counts for nobody: PyTorch's makes it always, ours where a group does not fit on chip,
and then mostly from L2. Convolutions, matrix products and attention are reported apart: they are limited by arithmetic.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: on fake tensors of a CPU an op is then one operation

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastgen
from proof.counters import distinct_bytes, operands
from proof.record import write_json

PRODUCTS = "convolution", "mm", "addmm", "bmm", "baddbmm", "attention", "_scaled_dot_product"


def ddpm_cifar10() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """google/ddpm-cifar10-32 (Ho et al. 2020, arXiv:2006.11239), batch 128."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    return model, (torch.randn(128, 3, 32, 32), torch.randint(0, 1000, (128,)))


def sd_unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The UNet of Stable Diffusion 1.5 (Rombach et al. 2022, arXiv:2112.10752), batch 4 at 512²."""
    from diffusers import UNet2DConditionModel

    text = torch.randn(4, 77, 768)
    return UNet2DConditionModel(cross_attention_dim=768), (torch.randn(4, 4, 64, 64), torch.randint(0, 1000, (4,)), text)


def sd_vae() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The autoencoder of Stable Diffusion, batch 4 at 256²."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    return model, (torch.randn(4, 3, 256, 256),)


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "ddpm-cifar10, batch 128": ddpm_cifar10,
    "SD VAE at 256², batch 4": sd_vae,
    "SD-1.5 UNet, batch 4": sd_unet,
}


@dataclass(frozen=True)
class Count:
    """Of one pass: operations and their bytes, all, and those that are no products."""

    operations: int = 0
    bytes: int = 0
    operations_outside: int = 0
    bytes_outside: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Row:
    """A pass of a model, before and after `optimize`."""

    model: str
    direction: str
    before: Count
    after: Count


class Counter(TorchDispatchMode):
    """Counts operations, of which fastgen's are one each, for the part that is named at the time. Views, metadata, allocations
    and what is computed on tensors with data, as the host does, are none."""

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.part = part
        self.parts: dict[str, Count] = defaultdict(Count)

    @property
    def count(self) -> Count:
        """All parts together."""
        return sum(self.parts.values(), Count())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        read, written = operands(func, args, kwargs or {}, outputs)
        if func.namespace != "prim" and any(isinstance(x, FakeTensor) for x in (*read, *written)):
            size = sum(distinct_bytes(x) for x in (*read, *written))
            outside = not func.overloadpacket.__name__.startswith(PRODUCTS)
            self.parts[self.part] += Count(1, size, outside, size * outside)
        return outputs


def rows(name: str) -> Iterator[Row]:
    """Forward, and forward with backward."""
    counts = zip(passes(MODELS[name], optimized=False), passes(MODELS[name], optimized=True), strict=True)
    (forward, optimized_forward), (backward, optimized_backward) = counts
    yield Row(name, "forward", forward, optimized_forward)
    yield Row(name, "forward + backward", forward + backward, optimized_forward + optimized_backward)


def passes(build: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]], *, optimized: bool) -> tuple[Count, Count]:
    """Forward and backward, after `optimize` in channels_last, as it is on a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, (images, *rest) = build()
        if optimized:
            fastgen.optimize(model, channels_last=True)
            images = images.to(memory_format=torch.channels_last)
        with Counter() as forward:
            output = model(images, *rest)[0]
        upstream = torch.randn_like(output)
        with Counter() as backward:
            output.backward(upstream)
    return forward.count, backward.count


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as lines of text."""
    yield f"{'':45} {'operations':>14}  {'GB in all':>15}  {'GB outside products':>20}"
    for row in rows:
        a, b = row.before, row.after
        counts = f"{a.operations:6} → {b.operations:5}  {a.bytes / 1e9:6.2f} → {b.bytes / 1e9:6.2f}"
        outside = f"{a.bytes_outside / 1e9:6.2f} → {b.bytes_outside / 1e9:6.2f} {b.bytes_outside / a.bytes_outside - 1:+.1%}"
        yield f"{row.model + ', ' + row.direction:45} {counts}  {outside}"


def command(
    prog: str,
    doc: str,
    arguments: Sequence[str] | None,
    find: Callable[[], list[Any]],
    table: Callable[[list[Any]], Iterable[str]],
) -> None:
    """The command line of a count: prints the table of what find() counts; --json FILE writes the counts, with the versions of
    torch and diffusers. arguments: sys.argv's when None."""
    parser = argparse.ArgumentParser(prog=prog, description=doc.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the counts into this file")
    options = parser.parse_args(arguments)
    found = find()
    print(*table(found), sep="\n")
    if options.json:
        import diffusers

        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        write_json(options.json, versions | {"rows": [asdict(row) for row in found]})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    def find() -> list[Row]:
        return [row for name in MODELS for row in rows(name)]

    command("python -m benchmarks.studies.model_traffic", __doc__, arguments, find, table)


if __name__ == "__main__":
    main()
