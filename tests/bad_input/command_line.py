"""The command line: commands, options, settings and files, in this process."""
# ruff: noqa: E501  # a case a line

from tests.bad_input import files
from tests.bad_input.judge import Case, command

RUN = "run"


def says(argument, line, make=None):
    """The case of `fastgen LINE` in a folder with a run where the line names it, and with what make(folder) makes."""

    def call(folder):
        words = line.split()
        if RUN in words:
            files.run(folder)
        if make is not None:
            make(folder)
        command(*words)

    return Case(line[:70], argument, call, files.trained)


def options(start, table):
    return [says(name, f"{start} --{option} {value}".strip()) for name, option, values in table for value in values]


TRAIN = "train digits --out new --data.source nothing"

CASES = [
    *(says("command", line) for line in ("trian", "Sample", "-x", "42", "--verbose", "tr\x1b[31main")),
    *(says("preset", line) for line in ("train mnst", "train --steps", "train 7", "train MNIST")),
    *options(
        TRAIN,
        [
            ("steps", "steps", ("0", "-1", "1.5", "many", "nan", "1e3")),
            (r"batch[\w-]*", "batch-size", ("0", "-4", "x")),
            ("accumulation", "accumulation", ("0", "3", "x")),
            ("lr", "lr", ("0", "-1", "nan", "inf", "fast")),
            ("betas", "betas", ("0.9", "0.9 1.0", "a b")),
            ("ema", "ema", ("1", "-0.5", "nan", "x")),
            ("clip", "clip", ("-1", "nan", "x")),
            (r"weight[\w-]*", "weight-decay", ("-1", "nan")),
            ("warmup", "warmup", ("-1", "0.5")),
            ("seed", "seed", ("-1", "0.5", "9223372036854775808", "x")),
            ("precision", "precision", ("fp8", "")),
            ("device", "device", ("gpu",)),
            ("threads", "threads", ("0", "x")),
            (r"max[\w-]*", "max-minutes", ("0", "-1", "nan", "soon")),
            (r"log[\w-]*", "log-every", ("0", "x")),
            (r"log[\w-]*", "log-to", ("stdout",)),
            ("keep", "keep", ("0", "-1")),
            ("size", "data.size", ("0", "x")),
            ("channels", "data.channels", ("2", "x")),
            ("kind", "data.kind", ("rows",)),
            ("shift", "data.shift", ("-1", "x")),
            ("workers", "data.workers", ("-1", "x")),
            ("channels", "model.channels", ("0", "-8", "x")),
            ("multipliers", "model.multipliers", ("0", "1 -1", "x")),
            ("blocks", "model.blocks", ("0", "x")),
            ("groups", "model.groups", ("0", "x")),
            ("dropout", "model.dropout", ("1", "nan", "x")),
            ("schedule", "diffusion.schedule", ("ddpm", "diffusers")),
            ("prediction", "diffusion.prediction", ("noise",)),
            ("times", "diffusion.times", ("random",)),
            (r"label[\w-]*", "diffusion.label-dropout", ("2", "nan", "x")),
            ("stepz", "stepz", ("3",)),
        ],
    ),
    says("source", "train digits --out new --data.source nowhere"),
    says("source", "train folder32 --out new"),
    says("config", "train digits --out new --config nowhere.yaml"),
    says("config", "train digits --out new --config my.yaml", lambda folder: files.text(folder / "my.yaml", "[" * 5000)),
    says("config", "train digits --out new --config pipe.yaml", lambda folder: files.fifo(folder / "pipe.yaml")),
    says("out", "train digits --out full", lambda folder: files.text(folder / "full" / "thesis.txt", "x")),
    says("out", "train digits --out /proc/new"),
    says("resume", "train digits --out nowhere --resume"),
    says("out", "train digits --out run"),
    says(r"init[\w-]*", "train digits --out new --init-from nowhere"),
    *options(
        "sample run",
        [
            ("n", "n", ("0", "-1", "1.5", "x", "1000000000000")),
            ("first", "first", ("-1", "4294967296", "x")),
            (r"label[\w-]*", "label", ("10", "-1", "0.5", "cat")),
            ("guidance", "guidance", ("nan", "inf", "x")),
            ("interval", "interval", ("0.5 0.2", "0.5", "nan 1")),
            ("rescale", "rescale", ("-1", "2", "nan")),
            ("negative", "negative", ("10", "-1", "x")),
            ("steps", "steps", ("0", "-1", "1.5", "1000000000")),
            ("sampler", "sampler", ("eulr",)),
            ("times", "times", ("cosine",)),
            ("seed", "seed", ("-1", "x")),
            (r"batch[\w-]*", "batch-size", ("0", "x")),
            ("step", "step", ("7", "x")),
            ("device", "device", ("gpu",)),
            ("out", "out", ("a.jpg", "/proc/a.png")),
            (r"preview[\w-]*", "preview-every", ("0", "x")),
            ("run|guide", "guide", ("nowhere",)),
            ("odd", "odd", ("3",)),
        ],
    ),
    says("run", "sample"),
    says("run", "sample nowhere"),
    says("run", "sample bad\x1b[31mname"),
    says("image", "edit run"),
    says("image", "edit run nowhere.png"),
    says("image", "edit run text.png", lambda folder: files.text(folder / "text.png", "hello")),
    says("fit", "edit run a.png --fit stretch", lambda folder: files.picture(folder / "a.png")),
    says("hole", "inpaint run a.png a.png --hole grey", lambda folder: files.picture(folder / "a.png")),
    says("mask", "inpaint run black.png wide.png --hole black", lambda folder: (files.black(folder / "black.png"), files.black(folder / "wide.png", 8, 16))),
    says("mask", "inpaint run black.png black.png", lambda folder: files.black(folder / "black.png")),
    says("image", "edit run pipe.png", lambda folder: files.fifo(folder / "pipe.png")),
    *(says("strength", f"edit run a.png --strength {s}", lambda folder: files.picture(folder / "a.png")) for s in ("-0.1", "1.5", "nan", "x")),
    says("MASK", "inpaint run a.png", lambda folder: files.picture(folder / "a.png")),
    says("mask", "inpaint run a.png nowhere.png", lambda folder: files.picture(folder / "a.png")),
    *(
        says(option, f"inpaint run a.png a.png --hole black --{option} {value}", lambda folder: files.picture(folder / "a.png"))
        for option in ("resample", "jump")
        for value in ("0", "-1", "x")
    ),
    says("b", "interpolate run a.png nowhere.png", lambda folder: files.picture(folder / "a.png")),
    *(says("n", f"interpolate run a.png a.png --n {n}", lambda folder: files.picture(folder / "a.png")) for n in ("1", "0", "x")),
    says("run", "upscale run a.png", lambda folder: files.picture(folder / "a.png")),
    says("run", "export run"),
    says("run", "export nowhere"),
    says("preset", "info --preset mnst"),
    says(r"batch[\w-]*", "info --batch 8"),
    says(r"batch[\w-]*", "info --preset digits --batch 0"),
]  # fmt: skip
