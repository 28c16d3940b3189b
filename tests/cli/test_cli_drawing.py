"""The commands that draw from a run and from image files: what they write, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

import fastgen
from fastgen import progress_bar
from fastgen.applications import edit, inpaint
from fastgen.cli import main
from fastgen.config.schema import DiffusionConfig
from fastgen.files.images import read_image, save_image
from fastgen.training.train import train
from tests.helpers import tiny_runs


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """The runs labelled, vae, and upscaler from 4x4 to 8x8; image.png, other.png, mask.png of 8x8, small.png, wide.png, and
    two more masks: aside.png for wide.png, black.png without a hole."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_run("labelled", folder / "labelled")
    tiny_run("vae", folder / "vae")
    condition = DiffusionConfig(condition="low_resolution", factor=2)
    train(dataclasses.replace(tiny_runs.LABELLED, diffusion=condition), folder / "upscaler")
    for name, width in (("image", 8), ("other", 8), ("small", 4), ("wide", 16)):
        tiny_runs.picture(folder / f"{name}.png", min(width, 8), width, seed=width)
    for name, width, hole in (("mask", 8, 3), ("aside", 16, 3), ("black", 8, 0)):
        mask = np.zeros((8, width), np.uint8)
        mask[:, :hole] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    tiny_runs.truncate(tiny_runs.picture(folder / "broken.png", 64, 64))
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def _there(runs, monkeypatch):
    monkeypatch.chdir(runs)


def read(path, shape=(1, 8, 8)):
    return read_image("image", path, shape)


def test_an_inpainted_image_has_its_known_pixels(done, tmp_path):
    out = tmp_path / "out.png"
    assert done("inpaint", "labelled", "image.png", "mask.png", "--steps", 3, "--resample", 2, "--out", out) == [str(out)]
    image, result, hole = read("image.png"), read(out), read("mask.png") >= 128
    assert (result[~hole] == image[~hole]).all()
    assert (result[hole] != image[hole]).any()
    run = fastgen.load("labelled")
    assert (result == inpaint(run, image[None], hole[None], steps=3, resample=2)[0]).all()


def test_several_results_are_arrays_or_files_or_a_grid(done, tmp_path):
    done("inpaint", "labelled", "image.png", "mask.png", "--n", 3, "--steps", 2, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        images = file["images"]
    assert images.shape == (3, 8, 8, 1)
    assert (images[0] != images[1]).any()
    done("edit", "labelled", "image.png", "--n", 3, "--steps", 2, "--out", tmp_path / "folder")
    assert len(list((tmp_path / "folder").iterdir())) == 3
    done("edit", "labelled", "image.png", "--n", 3, "--steps", 2, "--out", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 600


def test_editing(done, tmp_path):
    assert done("edit", "labelled", "image.png", "--strength", 0) == ["labelled/edited.png"]
    assert (read("labelled/edited.png") == read("image.png")).all()
    options = (
        "--strength",
        0.5,
        "--label",
        3,
        "--guidance",
        2,
        "--interval",
        0.1,
        0.9,
        "--rescale",
        0.5,
        "--steps",
        4,
        "--seed",
        7,
    )
    done("edit", "labelled", "image.png", *options, "--out", tmp_path / "out.png")
    settings = {"label": 3, "guidance": 2.0, "interval": (0.1, 0.9), "rescale": 0.5, "steps": 4, "seed": 7}
    assert (read(tmp_path / "out.png") == edit(fastgen.load("labelled"), read("image.png")[None], 0.5, **settings)[0]).all()


def test_upscaling(done, tmp_path):
    done("upscale", "upscaler", "small.png", "--steps", 3, "--out", tmp_path / "out.png")
    assert read(tmp_path / "out.png").shape == (1, 8, 8)


def test_images_of_other_sizes_are_fitted_and_that_is_said(capsys, tmp_path):
    middle, out = read("wide.png", (1, 8, 16))[:, :, 4:12], tmp_path / "out.png"
    main(["edit", "labelled", "wide.png", "--strength", "0", "--out", str(out)])
    said = "image: 'wide.png' of 16x8 pixels is cropped to the 8x8 in its middle and scaled to 8x8 (--fit crop)"
    assert tuple(capsys.readouterr()) == (f"{out}\n", f"{said}\n")
    assert (read(out) == middle).all()
    hole = np.zeros((16, 32), np.uint8)  # in the image's proportions
    hole[:, 16:] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    main(["inpaint", "labelled", "wide.png", str(tmp_path / "mask.png"), "--steps", "1", "--out", str(out), "--overwrite"])
    assert f"mask: what is white in '{tmp_path}/mask.png' is the hole, 50% of the image\n" in capsys.readouterr().err
    assert (read(out)[:, :, :4] == middle[:, :, :4]).all()
    main(["upscale", "upscaler", "wide.png", "--fit", "pad", "--steps", "1", "--out", str(out), "--overwrite"])
    assert "image: 'wide.png' of 16x8 pixels is scaled to 4x2 and padded with black to 4x4 (--fit pad)" in capsys.readouterr().err


def test_interpolating(done, tmp_path):
    done("interpolate", "labelled", "image.png", "other.png", "--n", 4, "--steps", 3, "--out", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["images"].shape == (4, 8, 8, 1)


def test_a_weaker_run_guides(done, tmp_path):
    for name, more in (("guided", ["--guide", "labelled"]), ("plain", [])):
        done("sample", "labelled", "--guidance", 2, "--n", 2, "--steps", 2, *more, "--out", tmp_path / f"{name}.npz")
    guided, plain = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("guided", "plain"))
    assert (guided != plain).any()


def test_a_negative_class_and_the_first_image(done, tmp_path):
    done("sample", "labelled", "--n", 5, "--steps", 2, "--guidance", 2, "--negative", 3, "--out", tmp_path / "all.npz")
    done(
        *("sample", "labelled", "--n", 1, "--first", 4, "--steps", 2, "--guidance", 2, "--negative", 3),
        *("--out", tmp_path / "last.npz"),
    )
    whole, last = np.load(tmp_path / "all.npz"), np.load(tmp_path / "last.npz")
    assert last["labels"].tolist() == whole["labels"][4:].tolist() == [4]
    assert abs(whole["images"][4:].astype(int) - last["images"]).max() <= 1


def test_previews_lie_beside_the_output(done, tmp_path):
    done("sample", "labelled", "--n", 4, "--steps", 5, "--preview-every", 2, "--out", tmp_path / "out.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-preview.png", "out.npz"]
    done("sample", "labelled", "--n", 4, "--steps", 5, "--out", tmp_path / "more.npz")
    assert not (tmp_path / "more-preview.png").exists()
    lines = done("edit", "labelled", "image.png", "--steps", 5, "--preview-every", 1, "--out", tmp_path / "out.png")
    assert lines == [str(tmp_path / "out-preview-1.png"), str(tmp_path / "out.png")]  # what is there is left alone


def test_a_bar_counts_the_steps_of_images(monkeypatch, tmp_path):
    from fastgen.cli.drawing import DrawingOptions, watched

    bars = []
    monkeypatch.setattr(progress_bar, "tqdm", lambda **k: bars.append(tqdm(**k | {"disable": False})) or bars[-1])
    with watched(DrawingOptions(run=tmp_path), tmp_path / "out.png", 20 * 3) as callback:
        fastgen.load("labelled").sample(20, steps=3, batch_size=8, callback=callback, progress=False)
    fastgen.load("labelled").sample(20, steps=3, batch_size=8)
    fastgen.load("vae").sample(20, batch_size=8)
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(60, 60, "step")] * 3 + [(20, 20, "sample")]


def test_a_colour_image_becomes_grey_and_one_image_is_written_as_it_is(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "colour.png")
    colour = read_image("image", tmp_path / "colour.png", (3, 8, 8))
    assert (colour.permute(1, 2, 0).numpy() == array).all()
    assert read(tmp_path / "colour.png").shape == (1, 8, 8)
    for shape in ((3, 8, 8), (1, 8, 8)):
        image = read_image("image", tmp_path / "colour.png", shape)
        save_image(tmp_path / "again.png", image)
        assert (read_image("image", tmp_path / "again.png", shape) == image).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("inpaint labelled none.png mask.png", "image: expected an image file, got 'none.png': No such file or directory"),
        ("inpaint labelled image.png none.png", "mask: expected an image file, got 'none.png': No such file or directory"),
        ("inpaint labelled . mask.png", "image: expected an image file, got '.': Is a directory"),
        ("inpaint labelled text.png mask.png", "image: expected an image file, got 'text.png': UnidentifiedImageError"),
        ("inpaint labelled broken.png mask.png", "image: expected an image file, got 'broken.png': "),
        (
            "inpaint labelled image.png wide.png",
            "mask: expected the image's size of 8x8 pixels, or its proportions, in 'wide.png', got '16x8'",
        ),
        ("inpaint labelled image.png black.png", "mask: expected a hole, white pixels, in the image, got 'black.png'"),
        ("inpaint labelled wide.png aside.png", "mask: expected a hole in what --fit crop leaves of the image, got 'aside.png'"),
        ("inpaint labelled image.png mask.png --resample 0", "resample: expected a whole number >= 1, got 0"),
        ("inpaint labelled image.png mask.png --n 0", "n: expected a whole number >= 1, got 0"),
        ("inpaint labelled image.png mask.png --label 10", "label: expected a class from 0 to 9, got 10"),
        ("inpaint labelled image.png mask.png --guidance nan", "guidance: expected a finite number, got nan"),
        ("inpaint labelled image.png mask.png --out a.jpg", "out: expected a .png"),
        ("inpaint labelled image.png", "Missing from fastgen inpaint"),
        ("inpaint vae image.png mask.png", "run: expected that of a diffusion model, got that of a VAE"),
        ("inpaint upscaler image.png mask.png", "one without a condition, got one with diffusion.condition low_resolution"),
        ("inpaint nowhere image.png mask.png", "run: expected the folder of a training run"),
        ("edit labelled image.png --strength 1.5", "strength: expected a number in [0, 1], got 1.5"),
        ("edit labelled image.png --strength nan", "strength: expected a number in [0, 1], got nan"),
        ("edit labelled image.png --steps 1.5", "Error parsing --steps: invalid literal for int() with base 10: '1.5'"),
        ("edit labelled image.png --steps -5", "steps: expected a whole number >= 1, got -5"),
        ("edit labelled image.png --preview-every 0", "preview_every: expected a number >= 1, got 0"),
        ("edit labelled image.png --negative 3", "negative: expected none without a label, got 3"),
        ("upscale labelled small.png", "run: expected one trained with diffusion.condition low_resolution, got 'labelled'"),
        ("interpolate labelled image.png other.png --n 1", "n: expected a whole number >= 2, got 1"),
        ("interpolate labelled image.png other.png --sampler ddpm", "sampler: expected ddim"),
        ("sample upscaler", "one without a condition, got one with diffusion.condition low_resolution"),
        ("sample labelled --interval 0.5 0.2", "interval: expected two numbers with 0 <= low < high <= 1, got (0.5, 0.2)"),
        ("sample labelled --rescale 2", "rescale: expected a number in [0, 1], got 2.0"),
        (
            "sample labelled --guide upscaler --guidance 2",
            "guide: expected a run with the images and the diffusion of 'labelled'",
        ),
        ("sample labelled --first -1", "first: expected a whole number >= 0, got -1"),
        ("sample labelled --cuda-graph --preview-every 2", "cuda_graph: expected False with preview_every, got True"),
        ("sample labelled --cuda-graph --device cpu", "cuda_graph: expected False on a cpu, got True"),
    ],
)
def test_what_cannot_be_done_is_named(arguments, said, refused, runs):
    before = {p.name for p in runs.rglob("*.png")} - {"edited.png"}
    assert said in refused(*arguments.split())
    assert {p.name for p in runs.rglob("*.png")} - {"edited.png"} == before
