"""A trained run in Python: what load gives, what Run.sample draws, and what both refuse."""

import base64
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import fastgen
from fastgen.applications import edit
from fastgen.config.files import load_yaml
from fastgen.config.sampling import Sampling, SamplingOptions
from fastgen.config.schema import ConvVAEConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.data import open_dataset, open_held_out
from fastgen.models.build import make_model
from fastgen.runs import checkpoint
from fastgen.runs.run import describe, find_checkpoint, sample_labels
from fastgen.training.train import train
from tests.helpers import tiny_runs


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    return tiny_run("labelled", tmp_path_factory.mktemp("runs") / "labelled")


@pytest.fixture(scope="module")
def labelled(folder):
    return fastgen.load(folder)


@pytest.fixture(scope="module")
def vae(tiny_run, tmp_path_factory):
    return fastgen.load(tiny_run("vae", tmp_path_factory.mktemp("runs") / "vae"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    return fastgen.load(tiny_runs.unlabelled(tmp_path_factory.mktemp("runs") / "unlabelled"))


@pytest.fixture
def copied(folder, tmp_path):
    """The labelled run, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "run")


def test_a_run_is_the_trained_model_and_what_it_was_made_for(folder, labelled):
    assert (labelled.path, labelled.step, labelled.device.type) == (folder, 12, "cpu")
    assert labelled.config == tiny_runs.LABELLED == load_yaml(folder / "config.yaml")
    assert (labelled.shape, labelled.num_classes, labelled.classes) == ((1, 8, 8), 10, [str(i) for i in range(10)])
    assert (labelled.diffusion.prediction, labelled.diffusion.schedule.zero_terminal_snr) == ("flow", True)
    assert not labelled.model.training
    assert not any(p.requires_grad for p in labelled.model.parameters())


def test_a_run_has_the_averaged_weights(folder, labelled):
    saved = {name: checkpoint.load_tensors(checkpoint.at_step(folder / "checkpoints", 12), name) for name in ("ema", "model")}
    weights = labelled.model.state_dict()
    assert weights.keys() == saved["ema"].keys()
    assert all(torch.equal(weights[k], saved["ema"][k]) for k in weights)
    assert not torch.equal(weights["stem.weight"], saved["model"]["stem.weight"])


def test_the_weights_of_an_earlier_step(folder, labelled):
    earlier = fastgen.load(str(folder), step=6, device="cpu")
    assert earlier.step == 6
    assert not torch.equal(earlier.model.stem.weight, labelled.model.stem.weight)


def test_a_run_shows_itself_in_a_line_and_in_notebooks_with_its_samples(folder, labelled, vae):
    parameters = sum(p.numel() for p in labelled.model.parameters())
    line = f"UNet of {parameters:,} parameters at step 12, images of 1x8x8 in 10 classes, cpu)"
    assert repr(labelled) == f"Run('{folder}': {line}"
    picture = base64.b64encode((folder / "samples" / "00000012.png").read_bytes()).decode()
    assert line in labelled._repr_html_()
    assert f'<img src="data:image/png;base64,{picture}">' in labelled._repr_html_()
    assert "-reconstructed" in str(sorted((vae.path / "samples").iterdir()))
    assert vae._repr_html_().count("<img") == 1
    assert "<img" not in fastgen.load(folder, step=6)._repr_html_()


def test_a_vae_run(vae):
    assert isinstance(vae.model, fastgen.VAE)
    assert vae.diffusion is None
    assert (vae.shape, vae.num_classes) == ((1, 8, 8), None)
    images, labels = vae.sample(5)
    assert (images.shape, images.dtype, labels) == ((5, 1, 8, 8), torch.uint8, None)


def test_an_unlabelled_run(unlabelled):
    assert (unlabelled.num_classes, unlabelled.classes) == (None, None)
    images, labels = unlabelled.sample(5, steps=2)
    assert (images.shape, images.dtype, labels) == ((5, 1, 8, 8), torch.uint8, None)


# Run.sample


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]),
        (7, [7] * 12),
        (0, [0] * 12),
        ([7], [7] * 12),
        ((3, 1, 4), [3, 1, 4] * 4),
        (range(9, -1, -1), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9, 8]),
    ],
)
def test_labels_are_taken_in_turn(labelled, label, expected):
    images, labels = labelled.sample(12, label=label, steps=1, batch_size=5)
    assert (images.shape, images.dtype) == ((12, 1, 8, 8), torch.uint8)
    assert (labels.tolist(), labels.dtype) == (expected, torch.int64)


NAMES = ["5", "7", "dog", "hot dog", "cat\x1b[31m"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("dog", [2, 2, 2]),
        (["hot dog", 0, "4", torch.tensor(1)], [3, 0, 4]),
        ("7", [1, 1, 1]),  # a name comes before a number
        (7, "label: expected a class from 0 to 4, got 7"),
        ("8", "label: expected a class from 0 to 4, got 8"),
        ("Dog", r"label: expected a class from 0 to 4 or its name, such as dog, hot dog, cat\\x1b\[31m, 7, 5, got 'Dog'"),
        ("d" * 10**6, "label: expected a class from 0 to 4 or its name, such as dog, .* of 1000000 characters"),
    ],
)
def test_classes_go_by_their_names(label, expected):
    if isinstance(expected, list):
        assert sample_labels(3, 5, label, classes=NAMES).tolist() == expected
    else:
        with pytest.raises(ValueError, match=f"^{expected}$"):
            sample_labels(3, 5, label, classes=NAMES)


def test_a_run_draws_by_the_names_of_its_classes(labelled):
    named = dataclasses.replace(labelled, classes=[*"abcdefghij"])
    settings = {"steps": 2, "guidance": 2.0}
    ours, labels = named.sample(2, label=["d", "a"], negative="c", **settings)
    assert labels.tolist() == [3, 0]
    assert torch.equal(ours, labelled.sample(2, label=[3, 0], negative=2, **settings)[0])
    assert torch.equal(edit(named, ours, 0.5, label="d", **settings), edit(labelled, ours, 0.5, label=3, **settings))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "ddpm"])
@pytest.mark.parametrize("kind", ["labelled", "vae", "unlabelled"])
def test_an_image_depends_on_the_seed_and_its_number_alone(kind, sampler, request):
    run = request.getfixturevalue(kind)
    images, _ = run.sample(11, steps=3, sampler=sampler, seed=5)
    again, _ = run.sample(11, steps=3, sampler=sampler, seed=5)
    assert torch.equal(images, again)

    torch.manual_seed(1)
    fewer, _ = run.sample(7, steps=3, sampler=sampler, seed=5, batch_size=3)
    assert (fewer.int() - images[:7].int()).abs().max() <= 1  # matmuls of another batch round in another order

    other, _ = run.sample(11, steps=3, sampler=sampler, seed=6)
    assert all((a.int() - b.int()).abs().max() > 1 for a, b in zip(images, other, strict=True))
    assert len({image.numpy().tobytes() for image in images}) == 11


def test_label_guidance_steps_and_sampler_matter(labelled):
    base, _ = labelled.sample(4, label=3, steps=4, sampler="ddpm")
    for change in ({"label": 4}, {"guidance": 8.0}, {"steps": 5}, {"sampler": "euler"}):
        other, _ = labelled.sample(4, **{"label": 3, "steps": 4, "sampler": "ddpm"} | change)
        assert not torch.equal(other, base), change


def test_sampling_leaves_torchs_generator_alone(labelled, vae):
    state = torch.get_rng_state()
    labelled.sample(2, steps=2, sampler="ddpm")
    vae.sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_are_an_object_or_keywords_or_keywords_over_an_object(labelled):
    assert set(SamplingOptions.__annotations__) == {field.name for field in dataclasses.fields(Sampling)}
    expected, _ = labelled.sample(3, label=7, guidance=1.5, steps=2)
    assert torch.equal(labelled.sample(3, label=7, settings=Sampling(guidance=1.5, steps=2))[0], expected)
    assert torch.equal(labelled.sample(3, label=7, settings=Sampling(guidance=1.5, steps=9), steps=2)[0], expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        labelled.sample(3, step=2)


def test_guidance_by_a_null_label_that_was_never_trained_is_refused(labelled):
    settings = dataclasses.replace(labelled.config.diffusion, label_dropout=0.0)
    run = dataclasses.replace(labelled, config=dataclasses.replace(labelled.config, diffusion=settings))
    with pytest.raises(ValueError, match=r"guidance: expected 1, or a negative class, .* got 2\.0"):
        run.sample(1, steps=1, guidance=2.0)
    for fine in ({}, {"guidance": 2.0, "negative": 3}, {"guidance": 2.0, "guide": labelled}):
        run.sample(1, steps=1, **fine)


WRONG = [
    ({"n": 0}, r"n: expected a whole number >= 1, got 0"),
    ({"n": -3}, r"n: expected a whole number >= 1, got -3"),
    ({"batch_size": 0}, r"batch_size: expected a whole number >= 1, got 0"),
    ({"steps": 0}, r"steps: expected a whole number >= 1, got 0"),
    ({"seed": -1}, r"seed: expected a whole number >= 0, got -1"),
    ({"seed": 2**63}, r"seed: expected a whole number >= 0, got 9223372036854775808"),
    ({"guidance": float("nan")}, r"guidance: expected a finite number, got nan"),
    ({"guidance": float("inf")}, r"guidance: expected a finite number, got inf"),
    ({"sampler": "eulr"}, r"sampler: expected one of ddpm, ddim, euler, .*, unipc, got 'eulr'; did you mean euler\?"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
@pytest.mark.parametrize("kind", ["labelled", "vae"])
def test_what_no_model_can_draw_is_named(kind, arguments, message, request):
    with pytest.raises(ValueError, match=f"^{message}$"):
        request.getfixturevalue(kind).sample(**{"n": 2} | arguments)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, "label: expected a class from 0 to 9, got 10"),
        (-1, "label: expected a class from 0 to 9, got -1"),
        ([0, 1, 99], "label: expected a class from 0 to 9, got 99"),
        ([], r"label: expected at least one class, got \[\]"),
        ([0.5], "label: expected a class from 0 to 9, got 0.5"),
        ("12", "label: expected a class from 0 to 9, got 12"),
    ],
)
def test_a_label_that_the_model_does_not_have_is_named(labelled, label, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        labelled.sample(2, label=label)


@pytest.mark.parametrize("kind", ["vae", "unlabelled"])
def test_a_model_without_classes_takes_neither_label_nor_guidance(kind, request):
    run = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=r"^label: expected none, since the model has no classes, got 3$"):
        run.sample(2, label=3)
    why = "where there is neither label nor context" if kind == "unlabelled" else ", since the model has no classes"
    with pytest.raises(ValueError, match=rf"^guidance: expected 1 ?{why}, got 2.0$"):
        run.sample(2, guidance=2.0)
    assert len(run.sample(2, guidance=1.0, steps=1)[0]) == 2


# fastgen.load and find_checkpoint


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_is_no_run_is_named(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=f"run: expected the folder of a training run, got '.*{name}': it has no config.yaml"):
        fastgen.load(tmp_path / name)


def test_a_run_without_checkpoints_is_named(copied):
    for path in (copied / "checkpoints").iterdir():
        shutil.rmtree(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"run: expected one with a checkpoint, got '.*run', which has none yet"):
            fastgen.load(copied)
        shutil.rmtree(copied / "checkpoints", ignore_errors=True)


def test_the_last_checkpoint_is_found_unless_a_step_is_given(folder):
    assert find_checkpoint(folder) == find_checkpoint(folder, 12) == folder / "checkpoints" / "00000012"
    assert find_checkpoint(folder, 6) == folder / "checkpoints" / "00000006"
    for step in (0, 7, -6):
        with pytest.raises(ValueError, match=f"step: expected one of 6, 12, got {step}"):
            find_checkpoint(folder, step)


@pytest.mark.parametrize("name", ["ema.safetensors", "config.json"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_still_loads(name, copied):
    tiny_runs.flip_a_byte(copied / "checkpoints" / "00000012" / name)
    with pytest.raises(ValueError, match=rf"00000012/{name}: expected sha256"):
        fastgen.load(copied)
    assert fastgen.load(copied, step=6).step == 6


@pytest.mark.parametrize("name", ["ema.safetensors", "config.json", "manifest.json"])
def test_a_checkpoint_with_a_file_missing_is_named(name, copied):
    (copied / "checkpoints" / "00000012" / name).unlink()
    with pytest.raises(ValueError, match=r"00000012: expected a whole checkpoint, got .*No such file"):
        fastgen.load(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config: expected a mapping of names to values, got None"),
        ("nonsense", "config: expected a mapping of names to values, got 'nonsense'"),
        ("lr: [", "is not YAML"),
        ("\x00\xff", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML: could not determine a constructor"),
        ("lr: fast", "lr: expected a value of type float, got 'fast'"),
        ("model: {kind: [1]}", r"model.kind: expected one of unet, vae, conv_vae, diffusers, got '\[1\]'"),
        # Valid, but not what the checkpoint was trained as:
        ("model: {kind: vae}", "diffusion: expected {.*'flow'}, as in the checkpoint, got None"),
        ("diffusion: {schedule: cosine}", "diffusion: expected {.*'rectified_flow', .*}, as in the checkpoint, got {.*'cosine'"),
    ],
)
def test_a_spoilt_config_is_named(text, message, copied):
    (copied / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"config.yaml:? {message}"):
        fastgen.load(copied)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_named(folder, device):
    with pytest.raises(
        ValueError, match=rf"^device: expected auto, cpu, or a device of this machine, got '{device}' \(.{{,100}}\)$"
    ):
        fastgen.load(folder, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_on_a_machine_without_is_named(folder):
    with pytest.raises(ValueError, match="device: expected auto, cpu, or a device of this machine, got 'cuda'"):
        fastgen.load(folder, device="cuda")


# describe


@pytest.mark.parametrize("model", [UNetConfig(8, (1, 2), groups=4), VAEConfig(4), ConvVAEConfig(4, channels=8)])
def test_a_description_builds_the_model_again(model):
    config = TrainConfig(model=model, diffusion=TrainConfig().diffusion if isinstance(model, UNetConfig) else None)
    description = describe(config, (3, 8, 8), 2, ["cat", "dog"])
    assert json.loads(json.dumps(description)) == description
    assert (description["shape"], description["classes"]) == ([3, 8, 8], ["cat", "dog"])
    net = make_model(description)
    x = torch.zeros(2, 3, 8, 8)
    if isinstance(model, UNetConfig):
        assert net.num_classes == 2
        assert net(x, torch.zeros(2), torch.tensor([0, 2])).shape == x.shape
        assert description["diffusion"] == {"schedule": "rectified_flow", "prediction": "flow"}
    else:
        assert net.elbo(x).shape == (2,)
        assert description["diffusion"] is None


def test_a_factor_that_does_not_fit_the_images_is_named():
    config = TrainConfig(model=UNetConfig(8, (1, 2), groups=4), diffusion=DiffusionConfig(condition="low_resolution", factor=3))
    with pytest.raises(ValueError, match=r"diffusion.factor: expected a divisor of the images' sides, 8x8, got 3"):
        describe(config, (1, 8, 8), None, None)
    description = describe(config, (1, 9 * 2, 12), None, None)
    assert (description["arguments"]["in_channels"], description["arguments"]["out_channels"]) == (2, 1)
    assert description["diffusion"] | {"condition": "low_resolution", "factor": 3} == description["diffusion"]


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (
            UNetConfig(multipliers=(1, 2, 2)),
            (1, 30, 32),
            "data: expected sides that are multiples of 4, .* got 30x32; set data.size",
        ),
        (UNetConfig(multipliers=(1,), patch=3), (1, 8, 8), "data: expected sides that are multiples of 3, .* got 8x8"),
        (ConvVAEConfig(), (1, 8, 12), "data: expected square images for a ConvVAE, got 8x12; set data.size"),
    ],
)
def test_images_that_a_model_cannot_take_are_named(model, shape, message):
    config = TrainConfig(model=model, diffusion=TrainConfig().diffusion if isinstance(model, UNetConfig) else None)
    with pytest.raises(ValueError, match=message):
        describe(config, shape, None, None)


# Training on data that hold out what the model does not know


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            {"x_test": np.zeros((5, 12, 12), np.uint8)},
            r"test images of the training images' shape \(1, 8, 8\), got \(1, 12, 12\)",
        ),
        (
            {"x_test": np.zeros((5, 8, 8), np.uint8), "y_test": np.arange(3, 8)},
            "test labels of the 5 classes of training, got 8",
        ),
    ],
)
def test_a_test_split_that_the_model_cannot_take_is_named(test, message, tmp_path):
    np.savez(tmp_path / "data.npz", x_train=np.zeros((20, 8, 8), np.uint8), y_train=np.arange(20) % 5, **test)
    config = dataclasses.replace(
        tiny_runs.LABELLED, data=dataclasses.replace(tiny_runs.LABELLED.data, source=str(tmp_path / "data.npz"))
    )
    with pytest.raises(ValueError, match=f"data: expected {message}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grey_training_images_make_coloured_test_images_grey(tmp_path):
    np.savez(tmp_path / "data.npz", x_train=np.zeros((9, 8, 8), np.uint8), x_test=np.zeros((5, 8, 8, 3), np.uint8))
    data = open_dataset(tmp_path / "data.npz")
    assert open_held_out(tmp_path / "data.npz", data).shape == data.shape == (1, 8, 8)
