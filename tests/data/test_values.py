"""Between the units of values and a network: the statistics, the maps, and the models that take values."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fastgen.config.schema import ConvVAEConfig, DiffusersConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.data import open_dataset
from fastgen.data import units as module
from fastgen.data.units import Standardized, from_document, measure, to_document
from fastgen.models.build import make_model
from fastgen.runs.run import describe

UNET = UNetConfig(16, (1,), attention_levels=(), groups=4)


def measured(array, **options):
    return measure(open_dataset(array, kind="values", **options))


@pytest.mark.parametrize("shape", [(1, 3), (50, 1), (50, 3), (50, 3, 1), (50, 2, 7), (50, 5, 3, 2)])
def test_mean_and_deviation(shape, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)  # the last one is shorter
    array = np.random.default_rng(0).normal(1e4, 3, shape).astype(np.float32)
    values = measured(array)
    axes = (0, *range(2, len(shape)))
    assert values.shape == shape[1:]
    assert np.allclose(values.mean, array.astype(np.float64).mean(axes), rtol=1e-14)
    assert np.allclose(values.std, array.astype(np.float64).std(axes), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(500, 3), (500, 3, 1), (500, 2, 8), (100, 4, 8, 2)])
def test_a_network_sees_mean_0_and_deviation_1_of_each_channel(shape):
    array = np.random.default_rng(0).normal(5e3, 20, shape).astype(np.float32)
    values, x = measured(array), torch.from_numpy(array)
    seen = values.to_network(x)
    assert (seen.shape[1:], seen.dtype) == (values.network_shape, torch.float32)
    seen = seen.flatten(2)
    assert seen.mean((0, 2)).abs().max() < 1e-4
    assert seen.std((0, 2), correction=0).sub(1).abs().max() < 1e-4
    back = values.from_network(values.to_network(x))
    assert back.shape == x.shape
    assert (back - x).abs().max() < 2e-3  # two units in the last place of 5,000


def test_channels_keep_their_places():
    x = torch.arange(24.0).reshape(4, 2, 3)
    seen = Standardized(open_dataset(x, kind="values"), measured(x))
    batch, label = next(seen.batches(4, seed=1))
    assert label is None
    order = open_dataset(x, kind="values").batches(4, seed=1)
    assert batch.equal(measured(x).to_network(next(order)[0]))
    assert batch[:, 0].diff(dim=1).sub(batch[0, 0, 1] - batch[0, 0, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("constant", [0.0, 0.1, -7e8, 1e-30])
def test_a_constant_column_is_seen_as_0_and_drawn_as_it_is(constant):
    x = torch.randn(97, 3)
    x[:, 1] = constant
    values = measured(x)
    assert values.std[1] == 0
    assert values.to_network(x)[:, 1].abs().max() < 1e-6 * abs(constant) + 1e-30
    assert (values.from_network(torch.randn(5, 3, 1))[:, 1] == x[0, 1]).all()


def test_a_document_gives_the_values_back_through_json():
    values = measure(open_dataset("wine"))
    assert from_document(json.loads(json.dumps(to_document(values)))) == values
    assert from_document(to_document(None)) is None


@pytest.mark.parametrize("shape", [(9, 5), (9, 3, 16), (9, 5, 4, 6), (9, 1, 2, 4, 2)])
def test_a_description_builds_a_model_that_takes_them(shape):
    values = measured(torch.randn(shape))
    model = dataclasses.replace(UNET, multipliers=(1,) if len(shape) == 2 else (1, 2))
    description = describe(TrainConfig(model=model), values.shape, 2, ["a", "b"], values)
    net = make_model(json.loads(json.dumps(description)))
    seen = values.to_network(torch.randn(shape))
    assert net(seen, torch.rand(9), torch.arange(9) % 3).shape == seen.shape
    attends = any("attention" in name for name, _ in net.named_parameters())
    assert attends == (len(shape) > 2)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((5,), {"model": VAEConfig(), "diffusion": None}, "model: expected a UNet for values, got VAE, which is for images"),
        ((5, 8), {"model": ConvVAEConfig(), "diffusion": None}, "got ConvVAE, which is for images"),
        ((5,), {"model": DiffusersConfig()}, "got Diffusers, which is for images"),
        ((5,), {"diffusion": DiffusionConfig(condition="hole")}, "diffusion.condition: expected none for tables and signals"),
        ((5,), {"data": {"flip": True}}, "data.flip: expected False for tables and signals, got True"),
        ((5,), {"data": {"shift": 2}}, "data.shift: expected 0 for tables and signals, got 2"),
        (
            (5,),
            {"model": dataclasses.replace(UNET, multipliers=(1, 2))},
            "model.multipliers: expected one level for the rows",
        ),
        ((5,), {"model": dataclasses.replace(UNET, patch=2)}, "model.patch: expected 1 for the rows of a table"),
        (
            (5, 6),
            {"model": dataclasses.replace(UNET, multipliers=(1, 1, 1))},
            "data: expected a length that is a multiple of 4, ",
        ),
        ((5, 8, 7), {"model": dataclasses.replace(UNET, multipliers=(1, 1))}, "data: expected sides that are multiples of 2"),
    ],
)
def test_settings_for_images_are_named(shape, changes, message):
    data = dataclasses.replace(TrainConfig().data, **changes.pop("data", {}))
    config = TrainConfig(**{"model": UNET, "data": data} | changes)
    values = measured(torch.randn(4, *shape))
    with pytest.raises(ValueError, match=message):
        describe(config, shape, None, None, values)
