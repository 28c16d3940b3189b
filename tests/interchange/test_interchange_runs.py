"""Fine-tuning with --init-from, what is done with such a run, and its way back to diffusers."""

import dataclasses
import json
import shutil

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

import fastgen  # noqa: E402
from fastgen.cli import main  # noqa: E402
from fastgen.config.files import from_dict, load_yaml, save_yaml, to_dict  # noqa: E402
from fastgen.config.schema import DiffusersConfig, DiffusionConfig, UNetConfig, VAEConfig  # noqa: E402
from fastgen.data import open_dataset  # noqa: E402
from fastgen.data.dataset import Unlabelled  # noqa: E402
from fastgen.diffusion.schedules import Discrete, RectifiedFlow  # noqa: E402
from fastgen.interchange.init_from import starting_from  # noqa: E402
from fastgen.runs import checkpoint  # noqa: E402
from fastgen.training.train import train  # noqa: E402
from tests.helpers import tiny_diffusers, tiny_runs  # noqa: E402

SETTINGS = dataclasses.replace(tiny_runs.LABELLED, steps=4, checkpoint_every=2)
STILL = dataclasses.replace(SETTINGS, steps=1, warmup=0, lr=1e-30)  # weights stay what they are


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """What diffusers wrote: the pipelines plain and labelled, and the model alone."""
    folder = tmp_path_factory.mktemp("theirs")
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    tiny_diffusers.pipeline(folder / "plain", tiny_diffusers.unet(dropout=0.1), scheduler)
    tiny_diffusers.pipeline(folder / "labelled", tiny_diffusers.unet(num_class_embeds=11), scheduler)
    tiny_diffusers.unet().save_pretrained(folder / "alone")
    return folder


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    """A run of the pipeline labelled, which is no more where it was."""
    folder = tmp_path_factory.mktemp("runs")
    source = shutil.copytree(theirs / "labelled", folder / "source")
    train(SETTINGS, folder / "run", init_from=source)
    shutil.rmtree(source)
    return folder / "run"


@pytest.fixture
def refused(refused, tmp_path, monkeypatch):
    """The same, in a folder with the settings tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    save_yaml(SETTINGS, tmp_path / "tiny.yaml")
    return refused


def weights(run, name="model", step=None):
    folder = checkpoint.at_step(run / "checkpoints", step or checkpoint.steps(run / "checkpoints")[-1])
    return checkpoint.load_tensors(folder, name)


def equal(a, b):
    """But for what a step of STILL adds to zeros."""
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=0, atol=1e-29) for key in a)


# From diffusers


def test_the_settings_become_those_of_a_pipeline(theirs):
    config = starting_from(SETTINGS, theirs / "plain")
    assert config.model.unet == json.loads((theirs / "plain/unet/config.json").read_text())
    assert config.model.scheduler == json.loads((theirs / "plain/scheduler/scheduler_config.json").read_text())
    assert (config.diffusion.schedule, config.diffusion.prediction) == ("diffusers", "v")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert starting_from(config, theirs / "plain") == config


def test_a_file_may_name_another_model(theirs):
    config = starting_from(SETTINGS, theirs / "plain")
    assert from_dict({"model": {"kind": "unet", "channels": 8}}, config).diffusion == DiffusionConfig()
    assert from_dict({"model": {"kind": "vae"}}, config).diffusion is None


def test_a_model_alone_leaves_the_diffusion_to_the_settings(theirs):
    config = starting_from(SETTINGS, theirs / "alone")
    assert (config.model.scheduler, config.diffusion) == (None, SETTINGS.diffusion)
    assert starting_from(SETTINGS, theirs / "plain" / "unet").model.scheduler is None


@pytest.mark.parametrize("name", ["plain", "labelled", "alone"])
def test_training_starts_from_the_weights(name, theirs, tmp_path):
    train(STILL, tmp_path / "run", init_from=theirs / name)
    unet = diffusers.UNet2DModel.from_pretrained(theirs / name if name == "alone" else theirs / name / "unet")
    expected = {f"unet.{key}": value for key, value in unet.state_dict().items()}
    assert equal(weights(tmp_path / "run"), expected)
    assert equal(weights(tmp_path / "run", "ema"), expected)


def test_the_run_is_self_contained(run):
    loaded = fastgen.load(run)
    assert isinstance(loaded.model, fastgen.DiffusersUNet)
    assert isinstance(loaded.diffusion.schedule, Discrete)
    assert (loaded.diffusion.prediction, loaded.num_classes, loaded.step) == ("v", 10, 4)
    assert equal(loaded.model.state_dict(), weights(run, "ema"))
    images, labels = loaded.sample(6, label=[3, 4], guidance=1.5, steps=3, sampler="ddim")
    assert (images.shape, images.dtype, labels.tolist()) == ((6, 1, 8, 8), torch.uint8, [3, 4] * 3)
    assert (run / "samples" / "00000004.png").is_file()


def test_resumed_is_bitwise_uninterrupted(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "00000004")
    config = load_yaml(again / "config.yaml")
    assert isinstance(config.model, DiffusersConfig)
    assert train(config, again, resume=True).step == 4
    manifests = [(r / "checkpoints" / "00000004" / "manifest.json").read_text() for r in (run, again)]
    assert manifests[0] == manifests[1]


def test_a_model_without_classes_trains_on_labelled_images(theirs, tmp_path):
    train(SETTINGS, tmp_path / "run", init_from=theirs / "plain")
    loaded = fastgen.load(tmp_path / "run")
    assert (loaded.num_classes, loaded.classes) == (None, None)
    assert loaded.sample(3, steps=2)[1] is None


def test_a_model_without_a_null_label_trains_without_dropping_labels(tmp_path):
    tiny_diffusers.unet(num_class_embeds=10).save_pretrained(tmp_path / "theirs")
    config = dataclasses.replace(SETTINGS, diffusion=DiffusionConfig(label_dropout=0.0))
    train(config, tmp_path / "run", init_from=tmp_path / "theirs")
    loaded = fastgen.load(tmp_path / "run")
    assert isinstance(loaded.diffusion.schedule, RectifiedFlow)
    assert loaded.sample(2, label=9, steps=2)[1].tolist() == [9, 9]
    with pytest.raises(ValueError, match="guidance: expected 1 for a network without a null label"):
        loaded.sample(2, label=9, guidance=2.0)


def test_unlabelled_images_are_the_same():
    data = open_dataset("digits")
    alone = Unlabelled(data)
    assert (len(alone), alone.shape, alone.classes, alone.num_classes, alone.broken) == (len(data), data.shape, None, None, [])
    image, label = next(alone.batches(5, seed=3, start=10, device="cpu"))
    assert label is None
    assert torch.equal(image, next(data.batches(5, seed=3, start=10))[0])


# From a run


@pytest.fixture(scope="module")
def native(tiny_run, tmp_path_factory):
    return tiny_run("labelled", tmp_path_factory.mktemp("native") / "run")


def test_a_run_gives_its_averaged_weights(native, tmp_path):
    train(STILL, tmp_path / "run", init_from=native)
    assert equal(weights(tmp_path / "run"), weights(native, "ema"))


def test_a_run_of_diffusers_gives_its_unet_too(run, tmp_path):
    train(STILL, tmp_path / "run", init_from=run)
    assert equal(weights(tmp_path / "run"), weights(run, "ema"))
    assert load_yaml(tmp_path / "run" / "config.yaml").model == load_yaml(run / "config.yaml").model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": dataclasses.replace(SETTINGS.model, channels=16)},
            r"init_from: time.0.weight of .*: expected shape \(64, 16\), as in the model that is to be trained, got \(32, 8\)",
        ),
        (
            {"model": dataclasses.replace(SETTINGS.model, blocks=2)},
            r"init_from: down.1.res.* of .*: expected shape \(.*\), as in .*, got",
        ),
        ({"model": dataclasses.replace(SETTINGS.model, attention_levels=(1,))}, r"init_from: down.2.attention.* got 'nothing'"),
        ({"model": VAEConfig(4), "diffusion": None}, "init_from: model: expected UNet, as in .*, got 'VAE'"),
        ({"diffusion": DiffusionConfig("cosine", "v")}, "init_from: diffusion: expected .*'flow'}, as in .*, got .*'cosine'"),
    ],
    ids=["wider", "deeper", "attention", "another model", "another diffusion"],
)
def test_a_run_of_another_model_is_refused(change, message, native, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        train(dataclasses.replace(STILL, **change), tmp_path / "run", init_from=native)
    assert not (tmp_path / "run").exists()


# What does not fit


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            {"in_channels": 3, "out_channels": 3},
            {},
            "data: expected images of 3 channels, as the UNet's in_channels; set",
        ),
        (
            {"block_out_channels": (8,) * 5, "down_block_types": ("DownBlock2D",) * 5, "up_block_types": ("UpBlock2D",) * 5},
            {},
            "data: expected sides that are multiples of 16, .* got 8x8; set data.size",
        ),
        ({"num_class_embeds": 7}, {}, "num_classes: expected 7, as num_class_embeds, or 6, .*, got 10"),
        ({"num_class_embeds": 10}, {}, "diffusion.label_dropout: expected 0, since .*, got 0.1"),
        ({"out_channels": 2}, {}, "unet.out_channels: expected in_channels 1, got 2"),
        ({}, {"model": VAEConfig(4), "diffusion": None}, "init_from: expected a VAE for settings of a VAE, got 'UNet2DModel'"),
        ({}, {"diffusion": DiffusionConfig("linear")}, "diffusion.prediction: expected eps, x0, v on betas"),
        ({}, {"diffusion": DiffusionConfig("sigmoid", "eps")}, "diffusion.schedule: expected linear, cosine or rectified_flow"),
    ],
)
def test_what_does_not_fit_is_named(options, change, message, tmp_path):
    tiny_diffusers.unet(**options).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"^{message}"):
        train(dataclasses.replace(SETTINGS, **change), tmp_path / "run", init_from=tmp_path / "theirs")
    assert not (tmp_path / "run").exists()


def test_a_model_that_needs_context_is_named(tmp_path):
    tiny_diffusers.conditional().save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="init_from: expected a UNet without cross-attention"):
        train(SETTINGS, tmp_path / "run", init_from=tmp_path / "theirs")


def test_a_prediction_that_is_not_the_schedulers_is_named(theirs, tmp_path):
    config = starting_from(SETTINGS, theirs / "plain")
    config = dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, prediction="eps"))
    save_yaml(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"diffusion.prediction: expected v, as the scheduler's, got 'eps'"):
        train(load_yaml(tmp_path / "config.yaml"), tmp_path / "run")


def test_a_schedule_of_diffusers_needs_its_scheduler(theirs):
    with pytest.raises(ValueError, match=r"diffusion.schedule: expected another than diffusers without .*, got 'diffusers'"):
        dataclasses.replace(SETTINGS, model=UNetConfig(), diffusion=DiffusionConfig("diffusers"))
    config = starting_from(SETTINGS, theirs / "plain")
    with pytest.raises(ValueError, match=r"diffusion.schedule: expected diffusers, for its scheduler, got 'cosine'"):
        dataclasses.replace(config, diffusion=DiffusionConfig("cosine"))


# The command line


def test_the_command_line_there_and_back(theirs, refused, tmp_path, capsys):
    source = shutil.copytree(theirs / "plain", tmp_path / "theirs")
    main(["train", "digits", "--config", "tiny.yaml", "--init-from", "theirs", "--out", "run", "--steps", "2"])
    shutil.rmtree(source)
    main(["train", "mnist-vae", "--out", "run", "--resume", "--steps", "3"])
    main(["sample", "run", "--n", "4", "--steps", "2"])
    main(["export", "run"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["run/samples.png", "run/diffusers: unet, scheduler"]

    unet = diffusers.UNet2DModel.from_pretrained("run/diffusers/unet", use_safetensors=True)
    assert equal({f"unet.{key}": value for key, value in unet.state_dict().items()}, weights(tmp_path / "run", "ema", 3))
    saved = json.loads((tmp_path / "run/diffusers/scheduler/scheduler_config.json").read_text())
    assert saved == json.loads((theirs / "plain/scheduler/scheduler_config.json").read_text())
    pipeline = diffusers.DiffusionPipeline.from_pretrained("run/diffusers")
    assert type(pipeline) is diffusers.DDIMPipeline
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)

    main(["export", "run", "--step", "2", "--out", "earlier"])
    main(["train", "digits", "--config", "tiny.yaml", "--init-from", "earlier", "--out", "again", "--steps", "1"])
    assert "out: expected a new or empty folder, got 'earlier'" in refused("export", "run", "--out", "earlier")


def test_a_model_alone_goes_with_the_diffusion_of_the_options(theirs, refused, tmp_path):
    options = ["--init-from", str(theirs / "alone"), "--diffusion.schedule", "linear", "--diffusion.prediction", "eps"]
    main(["train", "digits", "--config", "tiny.yaml", "--out", "run", "--steps", "2", *options])
    loaded = fastgen.load("run")
    assert loaded.diffusion.prediction == "eps"
    assert loaded.diffusion.schedule.stepwise
    main(["export", "run", "--out", "back"])
    scheduler = diffusers.DDPMScheduler.from_pretrained("back/scheduler")
    assert (scheduler.config.beta_schedule, scheduler.config.prediction_type) == ("linear", "epsilon")
    refusal = refused("train", "digits", "--out", "run", "--resume", "--steps", 3, "--diffusion.schedule", "cosine")
    assert "resume: expected the run's own arguments" in refusal


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--init-from nowhere", "init_from: expected the folder of a run, or of a model or pipeline of diffusers, got 'nowhere'"),
        ("--init-from .", "unet: expected a folder that diffusers wrote, with config.json or unet/config.json, got '.'"),
        ("--init-from PLAIN --model.channels 8", "Unrecognized options: --model.channels"),
        (
            "--init-from PLAIN --diffusion.schedule cosine",
            "diffusion.schedule: expected diffusers, for its scheduler, got 'cosine'",
        ),
        ("--init-from RUN --out RUN --resume", "init_from: expected none with resume, which goes on with the run's own weights"),
        ("--diffusion.schedule diffusers", "diffusion.schedule: expected another than diffusers without --init-from's scheduler"),
        ("--init-from", "--init-from"),
    ],
)
def test_a_wrong_init_from_is_named(arguments, said, theirs, run, refused, tmp_path):
    arguments = [{"PLAIN": theirs / "plain", "RUN": run}.get(word, word) for word in arguments.split()]
    assert said in refused("train", "digits", "--config", tmp_path / "tiny.yaml", *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_run_of_fastgens_own_model_is_not_exported(native, refused, tmp_path):
    said = refused("export", native, "--out", "out")
    assert "run: expected one of a UNet of diffusers, as --init-from makes, got 'UNet'" in said
    assert "run: expected the folder of a training run, got 'nowhere'" in refused("export", "nowhere")
    assert not (tmp_path / "out").exists()


def test_where_an_export_cannot_be_written_is_named(run, refused):
    assert "out: expected a place that can be written, got 'tiny.yaml/x'" in refused("export", run, "--out", "tiny.yaml/x")


def test_help_names_it(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", "--help"])
    assert stop.value.code == 0
    assert "--init-from" in capsys.readouterr().out
