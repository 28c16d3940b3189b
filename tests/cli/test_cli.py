"""The command line as a new user meets it: what it prints, what it refuses and how."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.cli import COMMANDS, main
from fastgen.config.files import load_yaml, save_yaml
from fastgen.config.presets import PRESETS
from tests.helpers import tiny_runs
from tests.helpers.command import FRAME, run


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """A folder with the runs labelled, vae and unlabelled, pictures, and tiny.yaml, which a second is enough for."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_run("labelled", folder / "labelled")
    tiny_run("vae", folder / "vae")
    tiny_runs.unlabelled(folder / "unlabelled")
    save_yaml(dataclasses.replace(tiny_runs.LABELLED, steps=2), folder / "tiny.yaml")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No test leaves runs/ in the repository."""
    monkeypatch.chdir(tmp_path)


# In processes of their own: exit codes and streams are what a shell sees.


def test_a_command_that_succeeds_exits_with_0(tmp_path):
    shown = run("info", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert {"fastgen", "python", "torch", "triton", "device", "autocast"} <= set(rows)
    assert rows["fastgen"] == fastgen.__version__
    assert rows["torch"] == torch.__version__
    assert rows["group_norm"] == rows["to_x0"] == ("kernel" if torch.cuda.is_available() else "reference: the device is a CPU")
    assert run("--version", cwd=tmp_path).stdout == f"fastgen {fastgen.__version__}\n"


@pytest.mark.parametrize("arguments", [("train", "mnist", "--lr", "0"), ("sample", "none")])
def test_bad_input_exits_with_2_and_says_so_on_stderr(arguments, tmp_path):
    shown = run(*arguments, cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "Traceback" not in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_knows_ascii_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run("--help", cwd=tmp_path).returncode == 0
    assert run("train", "mnist", "--help", cwd=tmp_path).returncode == 0
    assert "--lr FLOAT" in run("train", "mnist", "--lrr", "1", cwd=tmp_path).stderr


def test_a_traceback_is_there_for_the_asking(monkeypatch):
    monkeypatch.setenv("FASTGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="preset: expected one of"):
        main(["train", "mnst"])


# Help


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(arguments, done):
    lines = done(*arguments)
    assert lines[0] == "usage: fastgen COMMAND ..."
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("arguments", [["train"], ["train", "--help"], ["train", "-h"]])
def test_help_on_train_names_the_presets(arguments, done):
    text = "\n".join(done(*arguments))
    for word in (*PRESETS, "--out RUN", "--config FILE", "--resume"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (
            ["train", "mnist"],
            {
                "--out": "runs/mnist",
                "--config": "None",
                "--resume": "False",
                "--lr": "0.003",
                "--data.source": "mnist",
                "--model.patch": "2",
                "--diffusion.times": "logit_normal",
            },
        ),
        (["train", "mnist-vae"], {"--out": "runs/mnist-vae", "--model.latent-dim": "16", "--data.shift": "1"}),
        (["sample"], {"--n": "64", "--guidance": "1.0", "--steps": "25", "--sampler": "euler", "--seed": "0", "--out": "None"}),
    ],
)
def test_help_on_a_command_has_its_options_with_defaults(arguments, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code in (0, None)
    text = " ".join(FRAME.sub(" ", capsys.readouterr().out).split())
    for option, default in options.items():
        assert re.search(rf" {re.escape(option)}[ ,](?:(?! --).)*\(default: {re.escape(default)}\)", text), option


# What is refused before torch is imported


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("smaple", f"command: expected one of {', '.join(COMMANDS)}, got 'smaple'; did you mean sample?"),
        ("--train", f"command: expected one of {', '.join(COMMANDS)}, got '--train'; did you mean train?"),
        ("train mnst", f"preset: expected one of {', '.join(PRESETS)}, got 'mnst'; did you mean mnist?"),
        ("train MNIST-vae", "got 'MNIST-vae'; did you mean mnist-vae?"),
        ("train --steps 3 mnist", f"preset: expected one of {', '.join(PRESETS)}, got '--steps'"),
        ("train digits --lrr 3", "Unrecognized options: --lrr, 3 Perhaps you meant: --lr FLOAT"),
        ("train digits --data.sise 3", "Perhaps you meant: --data.size {None}|INT"),
        ("train digits --model.latent-dim 3", "Unrecognized options: --model.latent-dim, 3"),
        ("train digits --outt x", "Perhaps you meant: --out PATH"),
        ("train digits --confg x", "Perhaps you meant: --config {None}|PATH"),
        ("train digits --resum", "Perhaps you meant: --resume"),
        ("train digits stray", "Unrecognized options: stray"),
        ("train digits --out", "Missing value for argument '--out'"),
        ("train digits --config", "Missing value for argument '--config'"),
        ("train digits --lr fast", "Error parsing --lr: could not convert string to float: 'fast'"),
        ("train digits --steps 1.5", "Error parsing --steps: invalid literal for int() with base 10: '1.5'"),
        (
            "train digits --precision fp8",
            "invalid choice 'fp8' for argument '--precision'. Expected one of ('auto', 'fp32', 'bf16', 'bf16_weights', 'fp16')",
        ),
        ("train digits --diffusion.schedule cosin", "invalid choice 'cosin' for argument '--diffusion.schedule'"),
        ("train digits --lr 0", "lr: expected a finite number > 0, got 0.0"),
        ("train digits --lr -1", "lr: expected a finite number > 0, got -1.0"),
        ("train digits --lr nan", "lr: expected a finite number > 0, got nan"),
        ("train digits --lr inf", "lr: expected a finite number > 0, got inf"),
        ("train digits --batch-size 0", "batch_size: expected a whole number >= 1, got 0"),
        ("train digits --steps 0", "steps: expected a whole number >= 1, got 0"),
        ("train digits --accumulation 3", "accumulation: expected a divisor of batch_size 32, got 3"),
        ("train digits --ema 1", "ema: expected a number in [0, 1), got 1.0"),
        ("train digits --data.size 0", "data.size: expected a number of pixels >= 1, got 0"),
        ("train digits --model.multipliers", "model.multipliers: expected numbers >= 1, got ()"),
        ("train mnist-vae --model.latent-dim 0", "model.latent_dim: expected a number >= 1, got 0"),
        ("train mnist-vae --diffusion.schedule cosine", "Unrecognized options: --diffusion.schedule, cosine"),
        ("train digits --resume", "resume: expected the folder of a run, with its config.yaml, got 'runs/digits'"),
        ("train digits --config none.yaml", "config: cannot read none.yaml: No such file or directory"),
        ("train digits --config .", "config: cannot read .: it is no regular file"),
        ("sample", "Missing from fastgen sample: RUN The folder of a training run."),
        ("sample x --lable 3", "Perhaps you meant: --label CLASS [CLASS ...]"),
        ("sample x --n many", "Error parsing --n: invalid literal for int() with base 10: 'many'"),
        ("info --all", "Unrecognized options: --all"),
    ],
)
def test_a_wrong_word_is_named(command, said, refused, tmp_path):
    assert said in refused(*command.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config: expected a mapping of names to values, got None"),
        ("lr: [", "my.yaml is not YAML"),
        ("learning_rate: 1", "my.yaml: learning_rate: no such setting"),
        ("batchsize: 1", "my.yaml: batchsize: no such setting; did you mean batch_size?"),
        ("data:\n  sise: 3", "my.yaml: data.sise: no such setting; did you mean size?"),
        ("lr: 0", "my.yaml: lr: expected a finite number > 0, got 0.0"),
        ("steps: many", "my.yaml: steps: expected a value of type int, got 'many'"),
        ("model: {kind: uent}", "model.kind: expected one of unet, vae, conv_vae, diffusers, got 'uent'; did you mean unet?"),
        ("diffusion: null", "my.yaml: diffusion: expected settings for a UNet"),
    ],
)
def test_a_bad_config_file_is_named(text, said, refused, tmp_path):
    (tmp_path / "my.yaml").write_text(text)
    assert said in refused("train", "digits", "--config", "my.yaml")


# What training refuses


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--device nonsense", "device: expected auto, cpu, or a device of this machine, got 'nonsense'"),
        ("--model.groups 3", "groups: expected a divisor of every level's channels [8, 16], got 3"),
        ("--model.attention-levels 5", "attention_levels: expected levels from 0 to 1, got (5,)"),
        ("--model.patch 3", "data: expected sides that are multiples of 6, which the model halves and halves again, got 8x8"),
        ("--data.size 9", "got 9x9; set data.size"),
        (
            "--data.source dgits",
            "breast_cancer, a folder, or a file, got 'dgits'; did you mean digits?",
        ),
        ("--data.source no/such/folder", "a folder, or a file, got 'no/such/folder'"),
        ("--data.source text", "source: expected a folder, a .npy, .npz, .csv or .parquet, got the file text"),
        (
            "--diffusion.prediction eps",
            "prediction: expected 'v', 'x0', 'flow' or 'edm' on a schedule with zero terminal SNR",
        ),
        ("--out text", "out: expected a place that can be written, got 'text': Not a directory"),
        ("--out text/run", "out: expected a place that can be written, got 'text/run': Not a directory"),
        ("--out /proc/run", "out: expected a place that can be written, got '/proc/run'"),
    ],
)
def test_what_cannot_be_trained_is_named(options, said, refused, runs, tmp_path):
    (tmp_path / "text").write_text("x")
    assert said in refused("train", "digits", "--config", runs / "tiny.yaml", *options.split())
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("command", ["train digits", "sample RUN"])
def test_cuda_on_a_machine_without_is_named(command, refused, runs):
    command = command.replace("RUN", str(runs / "labelled"))
    assert "device: expected auto, cpu, or a device of this machine, got 'cuda'" in refused(*command.split(), "--device", "cuda")


def test_a_preset_for_a_folder_says_how_to_give_one(refused, tmp_path):
    tiny_runs.picture(tmp_path / "photo.png", 32, 32)  # the working directory is not taken instead
    said = refused("train", "folder32", "--steps", 1, "--batch-size", 1, "--model.channels", 32)
    assert said == "fastgen: error: data.source: expected images or a table: give a folder or a file, --data.source PATH, got ''"


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["cats/notes.txt", "dogs/notes.txt"]])
def test_a_folder_without_images_is_named(files, refused, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in files:
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_text("x")
    assert "source: expected images, .png .jpg" in refused("train", "folder32", "--data.source", "photos")


def test_truncated_images_are_skipped_and_named_once(runs, tmp_path, capsys):
    for i in range(6):
        tiny_runs.picture(tmp_path / "photos" / f"{i}.png", seed=i)
    tiny_runs.truncate(tmp_path / "photos" / "3.png")
    tiny_runs.truncate(tmp_path / "photos" / "5.png")
    main(["train", "folder32", "--config", str(runs / "tiny.yaml"), "--data.source", "photos", "--out", "run"])
    out, err = capsys.readouterr()
    assert out == "run: samples/00000002.png, loss.png; to draw more: fastgen sample run\n"
    said = ["skipped 3.png", "skipped 5.png", "data", "model", "steps", "step 2 of 2"]  # without a terminal; with one, a bar
    assert [line.split(": ")[0] for line in err.splitlines()] == said
    assert load_yaml(tmp_path / "run" / "config.yaml").warmup == 0  # of two steps


def test_a_folder_of_truncated_images_is_named(refused, runs, tmp_path):
    for i in range(3):
        tiny_runs.truncate(tiny_runs.picture(tmp_path / "photos" / f"{i}.png"))
    said = refused("train", "folder32", "--config", runs / "tiny.yaml", "--data.source", "photos")
    assert "source: expected readable images in photos, got 3 broken: 0.png (" in said


def test_images_of_several_sizes_get_one_that_is_said(done, runs, tmp_path):
    for i in range(4):
        tiny_runs.picture(tmp_path / "photos" / f"{i}.png", 8 + 4 * i, 8)
    command = ["train", "folder32", "--config", runs / "tiny.yaml", "--data.source", "photos"]
    assert done(*command, "--out", "run")[0].startswith("data.size: 8, since none is given and images are of 4 sizes")
    assert fastgen.load("run").shape == (1, 8, 8)
    assert "data.size" not in "".join(done(*command, "--out", "other", "--data.size", 16))


def test_a_folder_that_holds_a_run_or_anything_else_is_left_alone(refused, runs):
    before = sorted((runs / "labelled").rglob("*"))
    said = refused("train", "digits", "--config", runs / "tiny.yaml", "--out", runs / "labelled")
    assert "already holds a run; add --resume to go on with it, or --out for another folder" in said
    assert sorted((runs / "labelled").rglob("*")) == before
    said = refused("train", "digits", "--config", runs / "tiny.yaml", "--out", runs / "pictures")
    assert "out: expected a new or empty folder, got" in said


# Resuming


@pytest.fixture
def copied(runs, tmp_path):
    """The labelled run, at step 12."""
    return shutil.copytree(runs / "labelled", tmp_path / "run")


def test_resuming_takes_the_runs_own_settings_and_options_go_over_them(copied, done):
    assert done("train", "mnist-vae", "--out=run", "--resume", "--steps=13") == [
        "run: samples/00000013.png, loss.png; to draw more: fastgen sample run"
    ]
    assert load_yaml(copied / "config.yaml") == dataclasses.replace(tiny_runs.LABELLED, steps=13)
    assert fastgen.load(copied).step == 13


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model.channels 16", "resume: expected the run's own arguments {'channels': 8, "),
        ("--data.size 16", "resume: expected the run's own shape [1, 8, 8], got [1, 16, 16]"),
        ("--diffusion.schedule cosine", "resume: expected the run's own diffusion {'schedule': 'rectified_flow', "),
        ("--resumed", "Perhaps you meant: --resume"),
    ],
)
def test_resuming_with_other_settings_is_refused(options, said, copied, refused):
    assert said in refused("train", "digits", "--out", "run", "--resume", "--steps", 14, *options.split())
    assert load_yaml(copied / "config.yaml") == tiny_runs.LABELLED
    assert fastgen.load(copied).step == 12


@pytest.mark.parametrize("name", ["model", "ema", "optimizer", "rng"])
def test_resuming_from_a_corrupt_checkpoint_is_refused(name, copied, refused):
    tiny_runs.flip_a_byte(copied / "checkpoints" / "00000012" / f"{name}.safetensors")
    assert f"00000012/{name}.safetensors: expected sha256" in refused("train", "digits", "--out", "run", "--resume")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.yaml", "resume: expected the folder of a run, with its config.yaml, got 'run'"),
        ("checkpoints", "run: expected one with a checkpoint, got 'run', which has none yet"),
    ],
)
def test_resuming_what_is_not_there_is_refused(gone, said, copied, refused):
    (copied / gone).rename(copied.parent / gone)
    assert said in refused("train", "digits", "--out", "run", "--resume")


def test_a_spoilt_log_is_named(copied, refused):
    (copied / "metrics.jsonl").write_text("nonsense\n")
    assert "run/metrics.jsonl: expected a JSON object a line" in refused("train", "digits", "--out", "run", "--resume")


# Sampling


def test_samples_are_a_grid_in_the_run_unless_out_is_given(copied, done):
    assert done("sample", "run", "--steps", 1, "--n", 20) == ["run/samples.png"]
    with Image.open(copied / "samples.png") as picture:
        assert (picture.mode, picture.size) == ("L", (612, 132))  # two rows of ten classes, six times as large
    done("sample", "run", "--steps", 1, "--n", 20, "--label", 3, "--out", "threes.png")
    with Image.open("threes.png") as picture:
        assert picture.size == (624, 504)  # five columns of four


def test_samples_as_arrays(runs, done):
    assert done("sample", runs / "labelled", "--label", 3, 4, "--n", 5, "--steps", 2, "--seed", 9, "--out", "a.npz") == ["a.npz"]
    with np.load("a.npz") as file:
        images, labels = file["images"], file["labels"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    assert labels.tolist() == [3, 4, 3, 4, 3]
    expected, _ = fastgen.load(runs / "labelled").sample(5, label=[3, 4], steps=2, seed=9)
    np.testing.assert_array_equal(images, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("labelled", ["000000-0.png", "000001-1.png", "000002-2.png"]),
        ("vae", ["000000.png", "000001.png", "000002.png"]),
        ("unlabelled", ["000000.png", "000001.png", "000002.png"]),
    ],
)
def test_samples_as_a_folder(kind, names, runs, done, tmp_path):
    done("sample", runs / kind, "--n", 3, "--steps", 1, "--batch-size", 2, "--out", "new/folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == names


def test_the_run_may_come_last(runs, done):
    done("sample", "--n", 2, "--steps", 1, "--out", "a.npz", "--label", 3, 4, runs / "labelled")
    with np.load("a.npz") as file:
        assert file["labels"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("labelled --label 10", "label: expected a class from 0 to 9, got 10"),
        ("labelled --label 3 -1", "label: expected a class from 0 to 9, got -1"),
        ("labelled --label sevn", "label: expected a class from 0 to 9 or its name, such as 9, 8, 7, 6, 5, got 'sevn'"),
        ("labelled --negative x", "negative: expected a class from 0 to 9 or its name, such as 9, 8, 7, 6, 5, got 'x'"),
        ("vae --label 3", "label: expected none, since the model has no classes, got ['3']"),
        ("unlabelled --label 3", "label: expected none, since the model has no classes, got ['3']"),
        ("vae --guidance 2", "guidance: expected 1, since the model has no classes, got 2.0"),
        ("unlabelled --guidance 2", "guidance: expected 1 where there is neither label nor context, got 2.0"),
        ("labelled --guidance nan", "guidance: expected a finite number, got nan"),
        (
            "labelled --sampler EULR",
            "sampler: expected one of ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde, unipc, got 'EULR';"
            " did you mean euler?",
        ),
        ("labelled --steps 0", "steps: expected a whole number >= 1, got 0"),
        ("labelled --n 0", "n: expected a whole number >= 1, got 0"),
        ("labelled --batch-size 0", "batch_size: expected a whole number >= 1, got 0"),
        ("labelled --seed -1", "seed: expected a whole number >= 0, got -1"),
        ("labelled --step 7", "step: expected one of 6, 12, got 7"),
        ("labelled --device nonsense", "device: expected auto, cpu, or a device of this machine, got 'nonsense'"),
        ("labelled --out a.jpg", "out: expected a .png, a .npz, or a folder without a suffix, got 'a.jpg'"),
        ("labelled --out text", "out: expected a place that can be written, got 'text'"),
        ("labelled --out text/a.png", "out: expected a place that can be written, got 'text/a.png'"),
        ("labelled --out /proc/a.npz", "out: expected a place that can be written, got '/proc/a.npz'"),
        ("nowhere", "run: expected the folder of a training run, got"),
        ("pictures", "it has no config.yaml"),
        ("tiny.yaml", "it has no config.yaml"),
    ],
)
def test_what_cannot_be_sampled_is_named(options, said, refused, runs, tmp_path):
    (tmp_path / "text").write_text("x")
    name, *rest = options.split()
    assert said in refused("sample", runs / name, *rest)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
    assert not (runs / name / "samples.png").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: tiny_runs.flip_a_byte(run / "checkpoints" / "00000012" / "ema.safetensors"), "safetensors: expected sha256"),
        (lambda run: (run / "config.yaml").unlink(), "it has no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("nonsense"), "config.yaml: config: expected a mapping"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "run: expected one with a checkpoint, got 'run', which has none yet"),
    ],
    ids=["corrupt checkpoint", "no config", "nonsense for a config", "no checkpoints"],
)
def test_a_spoilt_run_is_named(spoil, said, copied, refused):
    spoil(copied)
    assert said in refused("sample", "run")
