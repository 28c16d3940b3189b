"""A run: the folder that training leaves, and the trained model in it."""

import base64
import difflib
import html
import operator
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from fastgen.config.files import load_yaml
from fastgen.config.sampling import Sampling, SamplingOptions, with_options
from fastgen.config.schema import DiffusersConfig, TrainConfig
from fastgen.cuda_graph import Graphed
from fastgen.data.table_writer import to_frame
from fastgen.data.units import Values, from_document, to_document
from fastgen.device import autocast, host_may_read, place, resolve_device
from fastgen.diffusion.conditions import Beside, Condition, make_condition
from fastgen.diffusion.denoiser import Denoiser, null_label
from fastgen.diffusion.process import PREDICTIONS, Diffusion
from fastgen.diffusion.samplers import SAMPLERS, TIME_GRIDS, Callback, generate
from fastgen.errors import expect, is_whole, lookup
from fastgen.functional import noise_key
from fastgen.models import VariationalAutoencoder
from fastgen.models.build import MODELS, describe_diffusion, make_diffusion, make_model, model_arguments
from fastgen.pixels import signed_to_uint8, unit_to_uint8
from fastgen.progress_bar import progress_bar
from fastgen.runs import checkpoint
from fastgen_kernels.messages import printable, shown

Label = int | str | Sequence[int | str] | None

if TYPE_CHECKING:
    import pandas


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

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        kind = "images" if self.values is None else "values"
        classes = "" if self.classes is None else f" in {len(self.classes)} classes"
        return (
            f"Run({str(self.path)!r}: {type(self.model).__name__} of {parameters:,} parameters at step {self.step:,}, "
            f"{kind} of {'x'.join(map(str, self.shape))}{classes}, {self.device})"
        )

    def _repr_html_(self) -> str:
        """The run in a notebook: its last picture of samples, up to its step, below its repr."""
        pictures = sorted((self.path / "samples").glob("*.png"))
        upto = [path for path in pictures if path.stem.isdigit() and int(path.stem) <= self.step]
        source = f"data:image/png;base64,{base64.b64encode(upto[-1].read_bytes()).decode()}" if upto else ""
        return f"<code>{html.escape(repr(self))}</code>" + (f'<br><img src="{source}">' if upto else "")

    @torch.no_grad()
    def sample(
        self,
        n: int = 64,
        *,
        label: Label = None,
        first: int = 0,
        batch_size: int = 64,
        guide: "Run | None" = None,
        cuda_graph: bool = False,
        callback: Callback | None = None,
        progress: bool | None = None,
        settings: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[Tensor, Tensor | None]:
        """n images, uint8 (n, C, H, W) on the CPU, or values in their own units, fp32 (n, *shape), and their labels, int64 (n,)
        or None.

        label: one class for all, by number or name, or a list that is repeated; by default every class in turn. first: the first
        image's number: image i depends on the seed and i, not on n, first or batch_size, which is halved where memory does not
        suffice. guide: a weaker run for autoguidance, in place of the unconditional model. cuda_graph: the work of a batch is
        recorded once and replayed. callback(i, x, x0_hat): after step i of a batch. progress: whether a bar counts the steps of
        single samples; None: on a terminal and in a notebook, after a second. settings, and over them options, which are the
        fields of `Sampling`: guidance, steps, sampler, seed, and so on. Raises ValueError for what the model cannot do, TypeError
        for an option that there is not, FloatingPointError where the network's output is not finite.
        """
        batches = self.sample_in_batches(
            n,
            label=label,
            first=first,
            batch_size=batch_size,
            guide=guide,
            cuda_graph=cuda_graph,
            callback=callback,
            progress=progress,
            settings=settings,
            **options,
        )
        drawn, labels = zip(*batches, strict=True)
        return torch.cat(drawn), None if labels[0] is None else torch.cat(labels)

    def sample_frame(self, n: int = 64, **options: Any) -> "pandas.DataFrame":
        """n rows of a table as a DataFrame with the columns, their order and their dtypes of the data, and the label's column.
        options: those of `sample`, which raises what this raises; ValueError, too, for a run of no table, and
        ModuleNotFoundError without pandas."""
        values = self.values
        if values is None or len(values.shape) != 1:
            raise ValueError(f"run: expected that of a table, got {str(self.path)!r}")
        x, labels = self.sample(n, **options)
        return to_frame(values.columns(x, labels))

    @torch.no_grad()
    def sample_in_batches(
        self,
        n: int,
        *,
        label: Label = None,
        first: int = 0,
        batch_size: int = 64,
        guide: "Run | None" = None,
        cuda_graph: bool = False,
        callback: Callback | None = None,
        progress: bool | None = None,
        settings: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What `sample` gives, batch by batch, each as soon as it is drawn. Raises as `sample` does, at the first batch."""
        expect("n", n, is_whole(n, 1), "a whole number >= 1")
        expect("n", n, n < 2**32, "a number below 2^32")
        expect("first", first, is_whole(first, 0, 2**32 - 1 - n), "a whole number >= 0")
        expect("cuda_graph", cuda_graph, not cuda_graph or self.device.type == "cuda", f"False on a {self.device.type}")
        expect("cuda_graph", cuda_graph, not cuda_graph or callback is None, "False with a callback, which a graph cannot call")
        chosen = with_options(settings, options)
        if self.diffusion is None:  # a VAE takes no steps: what none could take is refused all the same
            lookup("sampler", chosen.sampler, SAMPLERS)
            lookup("times", chosen.times, TIME_GRIDS)
            expect("guidance", chosen.guidance, chosen.guidance == 1, "1, since the model has no classes")

        by_step = self.diffusion is not None and not cuda_graph

        def seen(i: int, x: Tensor, x0_hat: Tensor) -> None:
            bar.update(len(x))
            if callback is not None:
                callback(i, x, x0_hat)

        def draw(key: Tensor, label: Tensor | None) -> Tensor:
            if isinstance(self.model, VariationalAutoencoder):
                return self.images_of(self.model.sample(len(key), key=key))
            shape = self.shape if self.values is None else self.values.network_shape
            shown = callback if bar.disable or cuda_graph else seen
            with self.autocast():
                x0 = generate(self.denoiser(label, chosen, guide=guide), shape, key, chosen, shown)
            return x0.float() if self.values is not None else signed_to_uint8(x0)

        labels = sample_labels(n, self.num_classes, label, first, self.classes)
        key = noise_key(chosen.seed, samples=range(first, first + n), device=self.device)
        on_device = None if labels is None else labels.to(self.device)
        start = 0
        unit, steps = ("step", chosen.steps) if by_step else ("sample", 1)
        with progress_bar(n * steps, unit=unit, shown=progress, delay=1) as bar:
            for drawn in batch_by_batch(Graphed(draw) if cuda_graph else draw, batch_size, key, on_device):
                end = start + len(drawn)
                bar.update(0 if by_step else len(drawn))
                own = drawn if self.values is None else self.values.from_network(drawn)
                yield own, None if labels is None else labels[start:end]
                start = end

    def denoiser(
        self,
        label: Tensor | None = None,
        settings: Sampling = Sampling(),  # noqa: B008  # frozen
        *,
        guide: "Run | None" = None,
        beside: Tensor | None = None,
    ) -> Denoiser:
        """The trained model as the samplers take it, under labels, int64 (N,), with the guidance that the settings say.

        guide: a weaker run of the same data and diffusion, for autoguidance. beside: what a model with a condition sees, floating
        (N, C', H, W). Raises ValueError for what the model cannot do.
        """
        if self.diffusion is None:
            raise ValueError(f"run: expected that of a diffusion model, got that of a VAE, {str(self.path)!r}")
        needed = "none" if self.config.diffusion is None else self.config.diffusion.condition
        if (needed == "none") != (beside is None):
            expected = f"one {'without' if beside is None else 'with'} a condition"
            raise ValueError(f"run: expected {expected}, got one with diffusion.condition {needed}, {str(self.path)!r}")
        net, weak = self.model, None
        if guide is not None:
            given, own = ((run.shape, run.values, describe_diffusion(run.config)) for run in (guide, self))
            kind = "images" if self.values is None else "values"
            expect("guide", str(guide.path), given == own, f"a run with the {kind} and the diffusion of {str(self.path)!r}")
            weak = guide.model
        if beside is not None:
            net, weak = Beside(net, beside), None if weak is None else Beside(weak, beside)
        negative = None
        if settings.negative is not None:
            if label is None:
                raise ValueError(f"negative: expected none without a label, got {settings.negative}")
            number = class_number("negative", settings.negative, self.num_classes or 0, self.classes)
            negative = torch.full_like(label, number)
        against_null = label is not None and guide is None and negative is None
        if against_null and null_label(self.model) is not None and not self.knows_null_label:
            expected = "1, or a negative class, or a guide: the run was trained with label_dropout 0, never without a label"
            expect("guidance", settings.guidance, settings.guidance == 1, expected)
        predicted = PREDICTIONS[self.diffusion.prediction]
        return Denoiser(self.diffusion.schedule, predicted, net, settings, label=label, negative_label=negative, guide=weak)

    @property
    def vae(self) -> VariationalAutoencoder:
        """The model of a run of a VAE: `run.vae.encode(images)` gives their codes. Raises ValueError for a diffusion model."""
        if not isinstance(self.model, VariationalAutoencoder):
            raise ValueError(f"run: expected that of a VAE, got that of a diffusion model, {str(self.path)!r}")
        return self.model

    def images_of(self, decoded: Tensor) -> Tensor:
        """What a VAE decoded, in [0, 1], as uint8 (N, C, H, W). Raises FloatingPointError where it is not finite."""
        if host_may_read(decoded) and not bool(decoded.isfinite().all()):
            raise FloatingPointError("model: expected finite numbers, got NaN or infinity in the decoded images")
        return unit_to_uint8(decoded).view(-1, *self.shape)

    def autocast(self) -> torch.autocast:
        """The precision that the model was trained in."""
        return autocast(self.device, self.config.precision)

    @property
    def condition(self) -> Condition | None:
        """What the model sees beside the noise; None for a model that draws."""
        return make_condition(self.config.diffusion)

    @property
    def knows_null_label(self) -> bool:
        """Whether the model was trained without labels, too, which is what classifier-free guidance compares with. A UNet of
        diffusers may have been before."""
        diffusion = self.config.diffusion
        dropped = diffusion is not None and diffusion.label_dropout > 0
        return null_label(self.model) is not None and (dropped or isinstance(self.config.model, DiffusersConfig))

    @property
    def fingerprint(self) -> str:
        """The sha256 of the averaged weights, as the checkpoint has it: another for another training or step. Raises ValueError
        where the checkpoint is gone."""
        return checkpoint.sha256_of(checkpoint.at_step(self.path / "checkpoints", self.step), "ema")

    @property
    def num_classes(self) -> int | None:
        """How many classes the model was given; None for a VAE, which knows no labels."""
        return getattr(self.model, "num_classes", None)


def sample_labels(
    n: int, num_classes: int | None, label: Label = None, first: int = 0, classes: Sequence[str] | None = None
) -> Tensor | None:
    """The labels of samples number `first` onward, int64 (n,): `label` for all, or a list in turn, by default every class in
    turn; None for a model without classes. classes: their names, which `label` may give. Raises ValueError for a label that the
    model does not have."""
    if num_classes is None:
        if label is not None:
            raise ValueError(f"label: expected none, since the model has no classes, got {shown(label)}")
        return None
    each = list(label) if isinstance(label, Iterable) and not isinstance(label, str) else [label]
    expect("label", label, len(each) > 0, "at least one class")
    wanted = range(num_classes) if label is None else [class_number("label", one, num_classes, classes) for one in each]
    return torch.tensor([wanted[i % len(wanted)] for i in range(first, first + n)])


def class_number(argument: str, given: object, num_classes: int, classes: Sequence[str] | None = None) -> int:
    """The number of a class that is given by its name, or by its number, also as text. Raises ValueError, with the names that are
    nearest, for one that there is not."""
    expected = f"a class from 0 to {num_classes - 1}"
    if isinstance(given, str):
        if given in (classes or ()):
            return list(classes or ()).index(given)
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", given):
            near = difflib.get_close_matches(given[:64], classes or (), n=5, cutoff=0)
            names = f" or its name, such as {', '.join(map(printable, near))}" if near else ""
            expect(argument, given, False, expected + names)
        given = int(given)
    elif isinstance(given, Tensor) and given.dim() == 0:
        given = given.item()
    expect(argument, given, is_whole(given, 0, num_classes - 1), expected)
    return operator.index(given)  # type: ignore[arg-type]


def in_batches(draw: Callable[..., Tensor], size: int, *each: Tensor | None) -> Tensor:
    """What `batch_by_batch` gives, as one tensor (N, ...). Raises as it does."""
    return torch.cat(list(batch_by_batch(draw, size, *each)))


def batch_by_batch(draw: Callable[..., Tensor], size: int, *each: Tensor | None) -> Iterator[Tensor]:
    """draw(*rows of each) for at most `size` rows at a time of each, (N, ...) or None, one batch after another, on the CPU. A
    batch that the device's memory has no room for is halved, and those after it too.

    Raises ValueError for a size below 1, torch.OutOfMemoryError where there is no room for a single sample."""
    expect("batch_size", size, size >= 1, "a whole number >= 1")
    n = next(len(x) for x in each if x is not None)
    start = 0
    while start < n:
        try:
            drawn = draw(*(None if x is None else x[start : start + size] for x in each)).cpu()
        except torch.OutOfMemoryError:
            size = min(size, n - start)
            if size == 1:
                raise
            size //= 2
            continue
        start += size
        yield drawn


def load(path: str | Path, *, step: int | None = None, device: str = "auto") -> Run:
    """The run in a folder, at its last checkpoint or at `step`. Raises ValueError for a folder that is no run or is corrupt."""
    expect("path", path, isinstance(path, str | Path), "the path of a run")
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run: expected the folder of a training run, got {shown(str(path))}: it has no config.yaml")
    config = load_yaml(path / "config.yaml")
    folder = find_checkpoint(path, step)
    where = resolve_device(device)
    description = checkpoint.load_document(folder, "config")
    expect(str(folder / "config.json"), description, isinstance(description, dict), "a mapping of names to values")
    trained, given = description.get("diffusion"), describe_diffusion(config)
    expect(f"{path / 'config.yaml'}: diffusion", given, given == trained, f"{trained}, as in the checkpoint")
    expect_description(description, config, folder / "config.json")
    weights = checkpoint.load_tensors(folder, "ema")
    with made_of(folder / "config.json", "the description of a model"):
        model = make_model(description)
        values = from_document(description.get("values"))
    with made_of(folder / "ema.safetensors", "the weights of this model"):
        model.load_state_dict(weights)
    for name, weight in weights.items():
        known = model.state_dict()[name].is_floating_point() == weight.is_floating_point()
        finite = known and (not weight.is_floating_point() or bool(weight.isfinite().all()))
        got = "NaN or infinity" if known else str(weight.dtype)
        expect(f"{folder / 'ema.safetensors'}: {name}", got, finite, "finite weights")
    return Run(
        path,
        config,
        place(model, where).eval().requires_grad_(False),
        make_diffusion(config),
        tuple(description["shape"]),
        description["classes"],
        int(folder.name),
        where,
        values,
    )


def expect_description(description: Any, config: TrainConfig, file: Path) -> None:
    """Raises ValueError, naming the file, for a checkpoint's description that is not what `describe` makes for the configuration
    and some data: one that was edited."""
    for name, kind in (("model", str), ("arguments", dict), ("shape", list), ("classes", list | None), ("values", dict | None)):
        value = description.get(name, None if name == "values" else ...)
        expect(f"{file}: {name}", value, isinstance(value, kind), f"a value of type {getattr(kind, '__name__', kind)}")
    model, shape, classes = description["model"], description["shape"], description["classes"]
    lookup(f"{file}: model", model, MODELS)
    expect(f"{file}: shape", shape, shape and all(is_whole(side, 1) for side in shape), "whole numbers >= 1")
    expect(f"{file}: classes", classes, classes is None or all(isinstance(name, str) for name in classes), "names")
    with made_of(file, "the data of this configuration"):
        values = from_document(description.get("values"))
        number = description["arguments"].get("num_classes")
        seen = tuple(shape) if values is None else values.network_shape
        name, arguments = model_arguments(config, seen, number, values=values is not None)
    expect(f"{file}: model", model, model == name, f"{name}, as in config.yaml")
    for key, value in description["arguments"].items():
        same = value == arguments.get(key, value)
        expect(f"{file}: arguments.{key}", value, same, f"{shown(arguments.get(key))}, as config.yaml has it")
    if model == "UNet" and number is not None:
        expect(f"{file}: classes", classes, classes is not None and len(classes) == number, f"names of {number} classes")


@contextmanager
def made_of(file: Path, expected: str) -> Iterator[None]:
    """What cannot be made of a file that was read raises ValueError, naming the file."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        said = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"{file}: expected {expected}, got {said}") from error


def find_values(path: Path) -> Values | None:
    """What the last checkpoint of a run knows of its values; None for images. Raises ValueError where there is none."""
    return from_document(checkpoint.load_document(find_checkpoint(path), "config").get("values"))


def num_classes_of(path: Path) -> int:
    """How many classes the last checkpoint of a run knows; 0 without labels. Raises ValueError where there is none."""
    return len(checkpoint.load_document(find_checkpoint(path), "config").get("classes") or [])


def find_checkpoint(path: Path, step: int | None = None) -> Path:
    """The folder of the last checkpoint of a run, or of the one at `step`. Raises ValueError where there is none."""
    steps = checkpoint.steps(path / "checkpoints")
    if not steps:
        begin = "train begins it again without --resume"
        raise ValueError(f"run: expected one with a checkpoint, got {str(path)!r}, which has none yet; {begin}")
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
    seen = shape if values is None else values.network_shape
    name, arguments = model_arguments(config, seen, num_classes, values=values is not None)
    data = {"shape": list(shape), "classes": classes, "values": to_document(values)}
    return {"model": name, "arguments": arguments, **data, "diffusion": describe_diffusion(config)}
