"""Runs and checkpoints: damaged, cut, edited under right sums, and asked for what they do not have."""
# ruff: noqa: E501  # a case a line

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

import fastgen
from fastgen.config.files import load_yaml
from tests.bad_input import files
from tests.bad_input.judge import Case, bad

ANY = r"run|config|checkpoint|[\w./-]+"  # the file or the setting that is named


def spoilt(name, spoil, argument=ANY, use=fastgen.load):
    """The case of a run after spoil(run)."""

    def call(folder):
        run = files.run(folder)
        use(spoil(run) or run)

    return Case(f"{name} ({use.__name__})", argument, call, files.trained)


def resumed(run):
    from fastgen.training.train import train
    from tests.helpers.tiny_runs import without_pictures

    with without_pictures():
        train(load_yaml(run / "config.yaml", fastgen_settings(run)), run, resume=True)


def fastgen_settings(run):
    import dataclasses

    return dataclasses.replace(load_yaml(run / "config.yaml"), steps=3)


def yaml_of(content):
    return lambda run: files.text(run / "config.yaml", content).parent


def document(**changes):
    return lambda run: files.edited(run, **changes)


def json_of(name, content):
    def spoil(run):
        files.text(files.last(run) / name, content)
        if name != "manifest.json":
            files.resealed(run)

    return spoil


def tensors(name, change):
    """The file of tensors NAME after change(tensors), under right sums."""

    def spoil(run):
        path = files.last(run) / f"{name}.safetensors"
        held = load_file(path)
        changed = change(held)
        save_file(held if changed is None else changed, path)
        files.resealed(run)

    return spoil


def first(change):
    """change(tensor) of the first tensor."""

    def all_of(held):
        name = sorted(held)[0]
        held[name] = change(held[name]).contiguous()

    return all_of


def on_last(change):
    return lambda run: change(files.last(run))


TENSORS, DOCUMENTS = ("model", "ema", "optimizer", "rng"), ("config",)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

CASES = [
    # What is no run.
    *(bad("run|path", fastgen.load, path) for path in ("nowhere", "", ".", "bad\x1b[31mname", None, 7)),
    spoilt("a file", lambda run: run / "config.yaml"),
    spoilt("no config.yaml", lambda run: (run / "config.yaml").unlink()),
    spoilt("config.yaml is a folder", lambda run: ((run / "config.yaml").unlink(), (run / "config.yaml").mkdir())[2:] and None),
    spoilt("config.yaml is a pipe", lambda run: ((run / "config.yaml").unlink(), files.fifo(run / "config.yaml"))[2:] and None),
    spoilt("no checkpoints", lambda run: shutil.rmtree(run / "checkpoints")),
    spoilt("an empty checkpoint", lambda run: [path.unlink() for path in files.last(run).iterdir()] and None),
    spoilt("a file for a checkpoint", lambda run: (shutil.rmtree(files.last(run)), files.text(run / "checkpoints" / "00000009", "x"))[2:] and None),
    Case("another step", "step", lambda folder: fastgen.load(files.run(folder), step=7), files.trained),
    Case("a step that is no number", "step", lambda folder: fastgen.load(files.run(folder), step="last"), files.trained),
    Case("a negative step", "step", lambda folder: fastgen.load(files.run(folder), step=-1), files.trained),
    Case("another device", "device", lambda folder: fastgen.load(files.run(folder), device="gpu"), files.trained),
    Case("no device", "device", lambda folder: fastgen.load(files.run(folder), device=None), files.trained),
    # config.yaml.
    *(
        spoilt(f"config.yaml: {name}", yaml_of(content))
        for name, content in {
            "empty": "", "words": "nonsense", "a list": "[1, 2]", "no YAML": "{a: [", "tabs": "\tsteps: 3", "bytes": b"\xff\xfe\x00\x80",
            "unknown": "stepz: 3", "type": "steps: many", "range": "steps: 0", "nan": "lr: .nan", "huge": "steps: 1" + "0" * 5000,
            "float huge": "lr: 1" + "0" * 400, "object": "!!python/object/apply:os.getpid []", "deep": "[" * 5000, "deep map": "{a: " * 3000,
            "bomb": BOMB, "bomb inside": BOMB + "model: *i\n", "itself": "&a [*a]", "model itself": "model: &m {kind: unet, channels: *m}",
            "kind": "model: {kind: gan}", "model": "model: 3", "data": "data: []", "diffusion": "diffusion: {schedule: odd}",
            "keys": "{1: 2}", "key of a list": "? [a]\n: b", "date": "steps: 2020-01-01", "twice": "steps: [3, 3]", "null": "steps: null",
            "unet itself": "model: &m {kind: diffusers, unet: *m}\ndiffusion: {schedule: linear}",
        }.items()
    ),
    # Damage without right sums.
    *(spoilt(f"{name}.safetensors: a byte", on_last(lambda c, name=name: files.flipped(c / f"{name}.safetensors")), use=resumed) for name in TENSORS),
    *(spoilt(f"{name}.safetensors: half", on_last(lambda c, name=name: files.cut(c / f"{name}.safetensors")), use=resumed) for name in TENSORS),
    *(spoilt(f"{name}.safetensors: gone", on_last(lambda c, name=name: (c / f"{name}.safetensors").unlink()), use=resumed) for name in TENSORS),
    spoilt("config.json: a byte", on_last(lambda c: files.flipped(c / "config.json"))),
    spoilt("config.json: gone", on_last(lambda c: (c / "config.json").unlink())),
    spoilt("manifest.json: gone", on_last(lambda c: (c / "manifest.json").unlink())),
    *(spoilt(f"manifest.json: {text[:20]}", json_of("manifest.json", text)) for text in ("", "{}", "[]", "3", '{"sha256": 3}', '{"sha256": {}}', "[" * 100000)),
    # Edited under right sums.
    *(spoilt(f"config.json: {text[:20]}", json_of("config.json", text)) for text in ("", "{}", "[]", "3", "null", "nonsense", "[" * 100000, b"\xff\xfe\x80")),
    *(
        spoilt(f"config.json: {name} {value!r:.20}", document(**{name: value}))
        for name, values in {
            "model": (..., "GAN", 3, None, []),
            "arguments": (..., 3, None, [], {}, {"in_channels": 1, "odd": 2}, {"in_channels": 10**9}, {"in_channels": "1"}),
            "shape": (..., 3, None, [], [1], [1, 8], [1, 8, "8"], [1, -8, 8], [3, 8, 8]),
            "classes": (..., 3, "ten", [1, 2], ["a"]),
            "diffusion": (..., 3, None, {"schedule": "odd"}),
            "values": (3, [], {"shape": 3}, {"mean": []}),
        }.items()
        for value in values
    ),
    *(
        spoilt(f"{file}.safetensors: {name}", tensors(file, change), use=use)
        for file, use in (("ema", fastgen.load), ("model", resumed), ("optimizer", resumed))
        for name, change in {
            "one gone": lambda held: {key: held[key] for key in sorted(held)[:-1]},
            "another shape": first(lambda x: torch.zeros(3, 3, 3, dtype=x.dtype)),
            "another name": lambda held: {f"odd.{key}": value for key, value in held.items()},
            "none": lambda held: {},
        }.items()
    ),
    spoilt("ema.safetensors: NaN", tensors("ema", first(lambda x: x * float("nan")))),
    spoilt("ema.safetensors: integers", tensors("ema", first(lambda x: x.long()))),
    spoilt("rng.safetensors: another shape", tensors("rng", first(lambda x: x[:10])), use=resumed),
    spoilt("rng.safetensors: floats", tensors("rng", first(lambda x: x.float())), use=resumed),
    *(spoilt(f"ema.safetensors: {name}", json_of("ema.safetensors", text)) for name, text in {
        "words": "hello", "none": "", "long header": b"\xff" * 7 + b"\x00" + b"{}", "pickle": b"\x80\x04K\x01.", "deep": json.dumps({}) * 9}.items()),
]  # fmt: skip
