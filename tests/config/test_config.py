import dataclasses
import math

import pytest
import yaml

from fastgen.config.files import from_dict, load_yaml, save_yaml, to_dict
from fastgen.config.presets import DESCRIPTIONS, PRESETS
from fastgen.config.schema import ConvVAEConfig, DataConfig, DiffusersConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig


def test_every_preset_is_described():
    assert set(DESCRIPTIONS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_gives_the_preset_back(name, tmp_path):
    save_yaml(PRESETS[name], tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == PRESETS[name]
    assert load_yaml(tmp_path / "config.yaml", PRESETS["mnist"]) == PRESETS[name]


def test_a_file_need_not_name_everything(tmp_path):
    (tmp_path / "my.yaml").write_text("lr: 1e-3\nsteps: 7\nmodel:\n  multipliers: [1, 3]\n")
    config = load_yaml(tmp_path / "my.yaml", PRESETS["mnist"])
    model = dataclasses.replace(PRESETS["mnist"].model, multipliers=(1, 3))
    assert config == dataclasses.replace(PRESETS["mnist"], lr=1e-3, steps=7, model=model)


def test_another_kind_of_model_starts_from_its_own_defaults():
    config = from_dict({"model": {"kind": "conv_vae", "blocks": 2}}, PRESETS["mnist"])
    assert config.model == ConvVAEConfig(blocks=2)
    assert config.diffusion is None
    assert from_dict({"model": {"kind": "unet"}}, PRESETS["mnist-vae"]).diffusion == DiffusionConfig()


WRONG_VALUES = [
    ({"lr": 0.0}, "lr: expected a finite number > 0, got 0.0"),
    ({"lr": -1.0}, "lr: expected"),
    ({"lr": math.nan}, "lr: expected a finite number > 0, got nan"),
    ({"lr": math.inf}, "lr: expected"),
    ({"lr": True}, "lr: expected a value of type float, got True"),
    ({"lr": "fast"}, "lr: expected a value of type float, got 'fast'"),
    ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
    ({"steps": 0}, "steps: expected a whole number >= 1, got 0"),
    ({"steps": 1.5}, "steps: expected a value of type int, got 1.5"),
    ({"accumulation": 3}, "accumulation: expected a divisor of batch_size 32, got 3"),
    ({"ema": 1.0}, "ema: expected"),
    ({"clip": -1.0}, "clip: expected"),
    ({"clip": math.nan}, "clip: expected"),
    ({"seed": -1}, "seed: expected"),
    ({"threads": 0}, "threads: expected"),
    ({"max_minutes": 0.0}, "max_minutes: expected"),
    ({"betas": [0.9, 1.0]}, "betas: expected"),
    ({"betas": 0.9}, "betas: expected a list, got 0.9"),
    ({"betas": [0.9]}, "betas: expected a list of 2"),
    ({"precision": "fp8"}, "precision: expected one of auto, fp32, bf16, bf16_weights, fp16, got 'fp8'"),
    ({"learning_rate": 1.0}, "learning_rate: no such setting"),
    ({"batchsize": 1}, "batchsize: no such setting; did you mean batch_size"),
    ({"data": {"sise": 8}}, "data.sise: no such setting; did you mean size"),
    ({"data": {"size": 0}}, "data.size: expected"),
    ({"data": {"channels": 2}}, "data.channels: expected"),
    ({"data": "mnist"}, "data: expected a mapping"),
    ({"model": {"kind": "gan"}}, "model.kind: expected one of unet, vae, conv_vae, diffusers, got 'gan'"),
    ({"model": {"multipliers": []}}, "model.multipliers: expected"),
    ({"model": {"channels": 0}}, "model.channels: expected"),
    ({"model": {"latent_dim": 3}}, "model.latent_dim: no such setting"),
    ({"diffusion": {"schedule": "cosin"}}, "diffusion.schedule: expected one of"),
    ({"diffusion": {"label_dropout": 1.5}}, "diffusion.label_dropout: expected"),
    ({"diffusion": {"condition": "holes"}}, "diffusion.condition: expected one of none, low_resolution, hole, got 'holes'"),
    ({"diffusion": {"factor": 1}}, "diffusion.factor: expected a whole number >= 2, got 1"),
    ({"diffusion": None}, "diffusion: expected settings for a UNet"),
]


@pytest.mark.parametrize(("values", "message"), WRONG_VALUES, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_wrong_value_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values, PRESETS["mnist"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [", "is not YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(text, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_yaml(tmp_path / "bad.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config: cannot read .*none.yaml"):
        load_yaml(tmp_path / "none.yaml")


def test_a_vae_takes_no_diffusion():
    with pytest.raises(ValueError, match="diffusion: expected"):
        TrainConfig(model=VAEConfig(), diffusion=DiffusionConfig())


def test_a_unet_of_diffusers_sees_no_condition():
    with pytest.raises(ValueError, match=r"diffusion.condition: expected none for a UNet of diffusers, got 'hole'"):
        TrainConfig(model=DiffusersConfig(), diffusion=DiffusionConfig(condition="hole"))


def test_values_are_plain():
    plain = to_dict(TrainConfig(data=DataConfig("x"), model=UNetConfig(multipliers=(1, 2))))
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert plain["model"]["multipliers"] == [1, 2]
