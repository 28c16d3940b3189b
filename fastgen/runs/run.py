"""A run: the folder that training leaves, and the trained model in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen import noise_streams
from fastgen.config.files import load_yaml
from fastgen.config.sampling import Sampling
from fastgen.config.schema import TrainConfig
from fastgen.cuda_graph import Graphed
from fastgen.data.units import Values, from_document, to_document
from fastgen.device import autocast, place, resolve_device
from fastgen.diffusion.conditions import Beside, Condition, make_condition
from fastgen.diffusion.denoiser import Denoiser
from fastgen.diffusion.generate import generate, in_tiles, sample_labels
from fastgen.diffusion.process import Diffusion
from fastgen.diffusion.samplers import SAMPLERS, TIME_GRIDS
from fastgen.errors import expect, lookup
from fastgen.functional import noise_key
from fastgen.models import VariationalAutoencoder
from fastgen.models.build import describe_diffusion, make_diffusion, make_model, model_arguments
from fastgen.pixels import signed_to_uint8, unit_to_uint8
from fastgen.runs import checkpoint


@dataclass(frozen=True)
class Run:
    """A trained model. `model` has the averaged weights and is in eval mode; `diffusion` is None for a VAE; `shape` is (C, H, W),
    or that of `values`, which are None for images and whose `to_network` gives what the model takes; `classes` are their names,
    None without labels; `step` is the checkpoint's."""

    path: Path
    config: TrainConfig
    model: nn.Module
    diffusion: Diffusion | None
    shape: tuple[int, ...]
    classes: list[str] | None
    step: int
    device: torch.device
    values: Values | None = None

    @torch.no_grad()
    def sample(
        self,
        n: int = 64,
        *,
        label: int | Sequence[int] | None = None,
        first: int = 0,
        batch_size: int = 64,
        guide: "Run | None" = None,
        cuda_graph: bool = False,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """n images, uint8 (n, C, H, W) on the CPU, or values in their own units, fp32 (n, *shape), and their labels, int64 (n,)
        or None.

        label: one class for all, or a list that is repeated; by default every class in turn. first: the first image's number:
        image i depends on the seed and i, not on n, first or batch_size, which is halved where memory does not suffice. guide: a
        weaker run to guide away from, instead of no label. cuda_graph: the work of a batch is recorded once and replayed.
        callback(i, x, x0_hat): after step i of a batch. settings: those of `Sampling`: guidance, steps, sampler, seed, and so
        on. Raises ValueError for what the model cannot do.
        """
        expect("n", n, n >= 1, "a whole number >= 1")
        expect("first", first, 0 <= first < 2**32 - n, "a whole number >= 0")
        expect("cuda_graph", cuda_graph, not cuda_graph or self.device.type == "cuda", f"False on a {self.device.type}")
        expect("cuda_graph", cuda_graph, not cuda_graph or callback is None, "False with a callback, which a graph cannot call")
        options = Sampling(**settings)
        lookup("sampler", options.sampler, SAMPLERS)
        lookup("times", options.times, TIME_GRIDS)
        labels = sample_labels(n, self.num_classes, label, first)
        guided = options.guidance == 1 or labels is not None or guide is not None
        expect("guidance", options.guidance, guided, "1, since the model has no classes")

        shape, decode = (self.shape, signed_to_uint8) if self.values is None else (self.values.network_shape, Tensor.float)

        def samples(key: Tensor, label: Tensor | None) -> Tensor:
            if isinstance(self.model, VariationalAutoencoder):
                return unit_to_uint8(self.model.sample(len(key), key=key)).view(-1, *self.shape)
            with self.autocast():
                return generate(self.denoiser(label, options, guide=guide), shape, key, options, callback, decode)

        draw = Graphed(samples) if cuda_graph else samples

        def tile(part: range) -> Tensor:
            key = noise_key(options.seed, noise_streams.START, 0, part, self.device)
            return draw(key, None if labels is None else labels[part.start - first : part.stop - first].to(self.device))

        drawn = in_tiles(tile, range(first, first + n), batch_size)
        return drawn if self.values is None else self.values.from_network(drawn), labels

    def denoiser(
        self,
        label: Tensor | None = None,
        settings: Sampling = Sampling(),  # noqa: B008  # frozen
        *,
        guide: "Run | None" = None,
        beside: Tensor | None = None,
    ) -> Denoiser:
        """The trained model as the samplers take it, under labels (N,), guided as the settings say.

        guide: a weaker run of the same data and diffusion. beside: what a model with a condition sees, (N, C', H, W). Raises
        ValueError for what the model cannot do.
        """
        if self.diffusion is None:
            raise ValueError(f"run: expected that of a diffusion model, got that of a VAE, {str(self.path)!r}")
        needed = "none" if self.config.diffusion is None else self.config.diffusion.condition
        if (needed == "none") != (beside is None):
            raise ValueError(f"run: {str(self.path)!r} is of a model with the condition {needed!r}: see diffusion.condition")
        if guide is not None:
            given, own = ((run.shape, run.values, describe_diffusion(run.config)) for run in (guide, self))
            kind = "images" if self.values is None else "values"
            expect("guide", str(guide.path), given == own, f"a run with the {kind} and the diffusion of {str(self.path)!r}")
        net, weak = self.model, None if guide is None else guide.model
        if beside is not None:
            net, weak = Beside(net, beside), None if weak is None else Beside(weak, beside)
        return self.diffusion.denoiser(
            net,
            label=label,
            negative_label=self._negative(label, settings),
            guidance=settings.guidance,
            interval=settings.interval,
            rescale=settings.rescale,
            guide=weak,
        )

    def _negative(self, label: Tensor | None, settings: Sampling) -> Tensor | None:
        if settings.negative is None:
            return None
        if label is None:
            raise ValueError(f"negative: expected none without a label, got {settings.negative}")
        last = (self.num_classes or 0) - 1
        expect("negative", settings.negative, 0 <= settings.negative <= last, f"a class from 0 to {last}")
        return torch.full_like(label, settings.negative)

    def autocast(self) -> torch.autocast:
        """The precision that the model was trained in."""
        return autocast(self.device, self.config.precision)

    @property
    def condition(self) -> Condition | None:
        """What the model sees beside the noise; None for a model that draws."""
        return make_condition(self.config.diffusion)

    @property
    def num_classes(self) -> int | None:
        """How many classes the model was given; None for a VAE, which knows no labels."""
        return getattr(self.model, "num_classes", None)


def load(path: str | Path, *, step: int | None = None, device: str = "auto") -> Run:
    """The run in a folder, at its last checkpoint or at `step`. Raises ValueError for a folder that is no run or is corrupt."""
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run: expected the folder of a training run, got {str(path)!r}: it has no config.yaml")
    config = load_yaml(path / "config.yaml")
    folder = find_checkpoint(path, step)
    where = resolve_device(device)
    description = checkpoint.load_document(folder, "config")
    trained, given = description.get("diffusion"), describe_diffusion(config)
    expect(f"{path / 'config.yaml'}: diffusion", given, given == trained, f"{trained}, as in the checkpoint")
    model = make_model(description)
    model.load_state_dict(checkpoint.load_tensors(folder, "ema"))
    return Run(
        path,
        config,
        place(model, where).eval().requires_grad_(False),
        make_diffusion(config),
        tuple(description["shape"]),
        description["classes"],
        int(folder.name),
        where,
        from_document(description.get("values")),
    )


def find_values(path: Path) -> Values | None:
    """What the last checkpoint of a run knows of its values; None for images. Raises ValueError where there is none."""
    return from_document(checkpoint.load_document(find_checkpoint(path), "config").get("values"))


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """The folder of the last checkpoint of a run, or of the one at `step`. Raises ValueError where there is none."""
    steps = checkpoint.steps(path / "checkpoints")
    if not steps:
        raise ValueError(f"run: {str(path)!r} has no checkpoint yet")
    if step is not None and step not in steps:
        raise ValueError(f"step: expected one of {', '.join(map(str, steps))}, got {step}")
    return checkpoint.at_step(path / "checkpoints", steps[-1] if step is None else step)


def describe(
    config: TrainConfig,
    shape: tuple[int, ...],
    num_classes: int | None,
    classes: list[str] | None,
    values: Values | None = None,
) -> dict[str, Any]:
    """What a checkpoint must say for its model to be built and used again: the class, its arguments, the data it was made for,
    and what its output means.

    Raises ValueError for images, or values, that the model cannot take."""
    name, arguments = model_arguments(config, shape if values is None else values.network_shape, num_classes)
    data = {"shape": list(shape), "classes": classes, "values": to_document(values)}
    return {"model": name, "arguments": arguments, **data, "diffusion": describe_diffusion(config)}
