"""What training makes of data that come without a size, with labels that skip numbers, or without a test split."""

import dataclasses
from unittest.mock import patch

import numpy as np
import pytest

import fastgen
from fastgen.config.schema import ConvVAEConfig, DataConfig, DiffusionConfig
from fastgen.data import NoTestSplit, open_dataset
from fastgen.training.data import open_training_data, sized
from fastgen.training.train import train
from tests.helpers import tiny_runs

VAE = {"model": ConvVAEConfig(multipliers=(1, 2)), "diffusion": None}
UPSCALE = {"diffusion": DiffusionConfig(condition="low_resolution", factor=4)}


@pytest.mark.parametrize(
    ("sides", "changes", "size"),
    [
        ([(24, 24)] * 3, {}, None),
        ([(24, 16)] * 3, {}, None),
        ([(27, 19)] * 3, {}, 18),
        ([(24, 16)] * 3, VAE, 16),
        ([(26, 26)] * 3, UPSCALE, 24),
        ([(1, 9)] * 3, {}, 2),
        ([(40, 60), (33, 90), (35, 35)], {}, 32),
        ([(8, 8)] + [(40, 60)] * 19, {}, 40),  # one of many is enlarged
        ([(400, 600), (900, 330)], {}, 128),
    ],
)
def test_a_size_is_chosen_where_images_need_one(sides, changes, size, tmp_path):
    for i, (height, width) in enumerate(sides):
        tiny_runs.picture(tmp_path / f"{i:02d}.png", height, width)
    config = dataclasses.replace(tiny_runs.LABELLED, data=DataConfig(str(tmp_path)), **changes)
    chosen, said = sized(config)
    assert chosen.data.size == size
    assert said.startswith(f"data.size: {size}, since none is given" if size else "")
    assert bool(said) == bool(size)
    assert sized(dataclasses.replace(config, data=DataConfig(str(tmp_path), size=8)))[1] == ""


def test_labels_that_skip_numbers_keep_their_names(tmp_path, unpictured):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "gaps.npz", images=images, labels=[0, 5, 7, 7] * 10)
    config = dataclasses.replace(
        tiny_runs.LABELLED, data=DataConfig(str(tmp_path / "gaps.npz"), hold_out=0.2), steps=2, sample_every=9
    )
    data, held_out, _ = open_training_data(config)
    assert data.classes == held_out.classes == ["0", "5", "7"]
    labels = np.concatenate([label for each in (data, held_out) for _, label in each.batches(9, epochs=1)])
    assert np.bincount(labels).tolist() == [10, 10, 20]
    assert {data[i][1] for i in range(len(data))} == {0, 1, 2}
    assert open_dataset(tmp_path / "gaps.npz").num_classes == 8  # to a loop of one's own labels are as they are
    train(config, tmp_path / "run")
    run = fastgen.load(tmp_path / "run")
    assert (run.num_classes, run.classes) == (3, ["0", "5", "7"])
    # A run from before they were: it goes on with its eight.
    with patch("fastgen.training.data.labels_in_use", lambda data: None):
        train(config, tmp_path / "old")
    train(dataclasses.replace(config, steps=3), tmp_path / "old", resume=True)
    assert fastgen.load(tmp_path / "old").num_classes == 8


def test_a_share_of_a_folder_or_of_arrays_is_held_out(tmp_path):
    for i in range(60):
        tiny_runs.picture(tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png", seed=i)
    array = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", images=array)
    for source in (tmp_path / "images", tmp_path / "x.npy", tmp_path / "x.npz", array):
        for resident in (True, False):
            parts = [open_dataset(source, split=split, hold_out=0.05, resident=resident) for split in ("train", "test", "all")]
            seen = [{x.numpy().tobytes() for x, _ in part.batches(1, epochs=1, workers=0)} for part in parts]
            assert [len(part) for part in seen] == [54, 6, 60]
            assert seen[0] | seen[1] == seen[2]
    before = {
        sample.name(i) for sample in [open_dataset(tmp_path / "images", split="test", hold_out=0.05).source] for i in range(6)
    }
    tiny_runs.picture(tmp_path / "images" / "a" / "new.png", seed=99)
    source = open_dataset(tmp_path / "images", split="test", hold_out=0.05).source
    assert len(before & {source.name(i) for i in range(len(source))}) >= 5
    with pytest.raises(NoTestSplit, match="4 samples, of which none is held out"):
        open_dataset(array[:4], split="test", hold_out=0.05)
