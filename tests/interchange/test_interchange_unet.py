"""A UNet of diffusers as our network, and back in a folder that diffusers loads."""

import copy
import json
import pickle
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

diffusers = pytest.importorskip("diffusers")

from diffusers.models.resnet import ResnetBlock2D  # noqa: E402

import fastgen  # noqa: E402
from fastgen import DiffusersUNet, Diffusion, DiffusionObjective, samplers  # noqa: E402
from fastgen.functional import noise_key  # noqa: E402
from tests.helpers import tiny_diffusers  # noqa: E402

DDPM, FLOW = diffusers.DDPMScheduler(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.001, 0.5, 1.0])


def seen(net, *inputs):
    """What the model of diffusers is called with."""
    calls = []
    net.unet.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    with torch.no_grad():
        net(*inputs)
    (_, timestep), named = calls[0]
    return timestep, named


def test_a_chain_is_told_integers_and_a_flow_its_sigma():
    timestep, _ = seen(DiffusersUNet(tiny_diffusers.unet(), DDPM), X, T)
    assert (timestep.dtype, timestep.tolist()) == (torch.int64, [0, 499, 999])
    timestep, _ = seen(DiffusersUNet(tiny_diffusers.unet(), FLOW), X, T)
    torch.testing.assert_close(timestep, torch.tensor([3 / 1.002, 750.0, 1000.0]))


def test_the_first_step_is_what_a_clean_image_is_told():
    assert DiffusersUNet(tiny_diffusers.unet(), DDPM).timestep(torch.tensor([0.0, 1e-5])).tolist() == [0, 0]


def test_it_is_the_model_of_diffusers():
    unet = tiny_diffusers.unet().eval()
    net = DiffusersUNet(unet, DDPM)
    assert net.unet is unet
    assert [key.removeprefix("unet.") for key in net.state_dict()] == list(unet.state_dict())
    expected = unet(X, torch.tensor([0, 499, 999])).sample
    assert torch.equal(net(X, T), expected)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(X, T), expected)


def test_optimized_it_is_the_same_and_is_written_the_same(tmp_path):
    net = DiffusersUNet(tiny_diffusers.unet(), DDPM)
    expected = net(X, T)
    assert "ResnetBlock2D" in {entry.kind for entry in fastgen.optimize(net).changed}
    torch.testing.assert_close(net(X, T), expected)
    net.save_pretrained(tmp_path)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    assert type(again) is diffusers.UNet2DModel
    assert type(again.down_blocks[0].resnets[0]) is ResnetBlock2D
    torch.testing.assert_close(DiffusersUNet(again, DDPM)(X, T), expected)


def test_a_new_one_is_optimized():
    net = DiffusersUNet.from_config(dict(tiny_diffusers.unet().config) | {"_class_name": "UNet2DModel"}, DDPM)
    assert fastgen.optimize(net).changed == ()  # there is nothing left to do
    plain = DiffusersUNet(tiny_diffusers.unet(), DDPM)
    assert net.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(X, T), plain(X, T))


def test_labels_with_a_null_label():
    net = DiffusersUNet(tiny_diffusers.unet(num_class_embeds=11), DDPM, num_classes=10).eval()
    label = torch.tensor([3, 10, 9])
    assert (net.num_classes, net.has_null_label) == (10, True)
    assert torch.equal(net(X, T, label), net.unet(X, net.timestep(T), class_labels=label).sample)
    assert torch.equal(net(X, T), net(X, T, torch.full((3,), 10)))
    guided = Diffusion.from_scheduler(DDPM).denoiser(net, label=torch.tensor([1, 2, 3]), guidance=2.0)
    plain, null = (Diffusion.from_scheduler(DDPM).denoiser(net, label=v) for v in (torch.tensor([1, 2, 3]), torch.full((3,), 10)))
    t = torch.tensor(0.5)
    torch.testing.assert_close(guided(X, t), 2 * plain(X, t) - null(X, t), rtol=1e-4, atol=1e-4)


def test_labels_without_a_null_label():
    diffusion, label = Diffusion.from_scheduler(DDPM), torch.tensor([0, 5, 9])
    net = DiffusersUNet(tiny_diffusers.unet(num_class_embeds=10), DDPM)
    assert (net.num_classes, net.has_null_label) == (10, False)
    assert torch.equal(net(X, T, label), net.unet(X, net.timestep(T), class_labels=label).sample)
    with pytest.raises(ValueError, match="label: expected classes below 10, since there is no null label, got None"):
        net(X, T)
    with pytest.raises(ValueError, match=r"guidance: expected 1 for a network without a null label, got 2.0"):
        diffusion.denoiser(net, label=label, guidance=2.0)
    assert diffusion.denoiser(net, label=label)(X, T).shape == X.shape
    DiffusionObjective(net, diffusion)(X, label)
    with pytest.raises(ValueError, match=r"label_dropout: expected 0 for a network without a null label, got 0.1"):
        DiffusionObjective(net, diffusion, label_dropout=0.1)(X, label)


def test_context_is_encoder_hidden_states():
    net = DiffusersUNet(tiny_diffusers.conditional(), DDPM).eval()
    context = torch.randn(3, 5, 6)
    assert torch.equal(net(X, T, None, context), net.unet(X, net.timestep(T), encoder_hidden_states=context).sample)
    guided = Diffusion.from_scheduler(DDPM).denoiser(net, context=context, guidance=2.0)
    assert guided(X, torch.tensor(0.5)).shape == X.shape
    with pytest.raises(ValueError, match=r"context: expected \(N, L, D\) for cross-attention, got None"):
        net(X, T)


def test_a_conditional_model_without_cross_attention_takes_no_context():
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}
    net = DiffusersUNet(tiny_diffusers.conditional(**blocks), DDPM).eval()
    assert net(X, T).shape == X.shape
    for other in (net, DiffusersUNet(tiny_diffusers.unet(), DDPM)):
        with pytest.raises(ValueError, match="context: expected None, since the model has no cross-attention, got"):
            other(X, T, None, torch.randn(3, 5, 6))
        with pytest.raises(ValueError, match="label: expected None from a UNet without num_class_embeds, got labels"):
            other(X, T, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("scheduler", [DDPM, FLOW], ids=["chain", "flow"])
def test_the_objective_is_that_of_a_loop_of_diffusers(scheduler):
    """A training step as in diffusers' examples, on the x_t and the target that are ours."""
    net, diffusion = DiffusersUNet(tiny_diffusers.unet(), scheduler), Diffusion.from_scheduler(scheduler)
    inputs = []
    net.unet.register_forward_pre_hook(lambda _, given: inputs.append(given))
    x0 = torch.rand(16, 1, 8, 8) * 2 - 1
    loss = DiffusionObjective(net, diffusion)(x0, key=noise_key(0, samples=16))
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    x_t, timestep = inputs[0]
    if scheduler is DDPM:
        alpha_bar = DDPM.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        target = (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    else:
        sigma = (timestep / 1000).view(-1, 1, 1, 1)
        target = (x_t - (1 - sigma) * x0) / sigma - x0
    with torch.no_grad():
        expected = (net.unet(x_t, timestep).sample - target).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-3, atol=1e-3)


def test_the_objective_compiles_whole():
    """Without a graph break. What autograd makes of such graphs is seen with UNets of fastgen and with `optimize`."""
    net = DiffusersUNet(tiny_diffusers.unet(num_class_embeds=11), DDPM, num_classes=10)
    objective = DiffusionObjective(net, Diffusion.from_scheduler(DDPM), label_dropout=0.5)
    x0, label, key = torch.rand(4, 1, 8, 8), torch.arange(4), noise_key(3, samples=4)
    compiled = torch.compile(objective, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x0, label, key=key), objective(x0, label, key=key))


# Folders


@pytest.mark.parametrize("kind", ["unet", "conditional"])
@pytest.mark.parametrize("scheduler", [DDPM, FLOW], ids=["chain", "flow"])
def test_there_and_back(kind, scheduler, tmp_path):
    unet = getattr(tiny_diffusers, kind)()
    net = DiffusersUNet.from_pretrained(tiny_diffusers.pipeline(tmp_path / "theirs", unet, scheduler))
    net.save_pretrained(tmp_path / "ours")
    files = {str(p.relative_to(tmp_path / "ours")) for p in (tmp_path / "ours").rglob("*") if p.is_file()}
    unet_files = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    index = {"model_index.json"} if kind == "unet" and scheduler is DDPM else set()  # diffusers has such a pipeline
    assert files == unet_files | {"scheduler/scheduler_config.json"} | index
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        theirs, ours = (json.loads((tmp_path / name / file).read_text()) for name in ("theirs", "ours"))
        assert {k: v for k, v in ours.items() if k != "_name_or_path"} == theirs
    theirs, ours = (load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() == unet.state_dict().keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = type(unet).from_pretrained(tmp_path / "ours" / "unet")
    assert type(again) is type(unet)
    loaded = type(scheduler).from_pretrained(tmp_path / "ours" / "scheduler")
    assert loaded.config.num_train_timesteps == 1000


def test_a_model_alone_needs_a_scheduler(tmp_path):
    tiny_diffusers.unet().save_pretrained(tmp_path / "model")
    net = DiffusersUNet.from_pretrained(tmp_path / "model", FLOW)
    with torch.no_grad():
        x0 = samplers.euler(Diffusion.from_scheduler(net.scheduler).denoiser(net), X, samplers.uniform_times(2))
    assert x0.shape == X.shape
    with pytest.raises(ValueError, match=r"scheduler: expected a scheduler, since '.*model' holds none"):
        DiffusersUNet.from_pretrained(tmp_path / "model")


def test_half_precision_is_trained_in_fp32(tmp_path):
    tiny_diffusers.unet().half().save_pretrained(tmp_path)
    assert {p.dtype for p in DiffusersUNet.from_pretrained(tmp_path, DDPM).parameters()} == {torch.float32}


def spoil_weights(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def pickled(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), folder / "diffusion_pytorch_model.bin")
    file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"expected a folder that diffusers wrote, with config.json or unet/config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json, got other text"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "DiTModel"}'), "_class_name: expected UNet2DModel or"),
        (pickled, "expected weights in diffusion_pytorch_model.safetensors, got none such"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99), ": cannot load .* Unable to load"),
        (lambda f: spoil_weights(f, lambda w: w.pop("conv_in.weight")), "beside these keys, got .'conv_in.weight'."),
        (lambda f: spoil_weights(f, lambda w: w.update(extra=torch.zeros(1))), "beside these keys, got .'extra'."),
        (lambda f: spoil_weights(f, lambda w: w.update({"conv_in.bias": torch.zeros(3)})), "cannot load .*conv_in.bias"),
    ],
    ids=["no config", "no JSON", "another class", "a pickle", "corrupt", "a key missing", "a key too many", "another shape"],
)
def test_a_folder_that_cannot_be_loaded_is_named(spoil, message, tmp_path):
    tiny_diffusers.unet().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)^unet.*{message}"):
        DiffusersUNet.from_pretrained(tmp_path, DDPM)


@pytest.mark.parametrize(
    ("unet", "options", "message"),
    [
        (tiny_diffusers.unet, {"out_channels": 2}, "unet.out_channels: expected in_channels 1, got 2"),
        (tiny_diffusers.unet, {"time_embedding_type": "fourier"}, "unet.time_embedding_type: expected None or positional, got"),
        (tiny_diffusers.unet, {"class_embed_type": "timestep"}, "unet.class_embed_type: expected None, got 'timestep'"),
        (
            tiny_diffusers.conditional,
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8},
            "unet.addition_embed_type: expected None, got 'text_time'",
        ),
        (
            tiny_diffusers.conditional,
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 4},
            "unet.encoder_hid_dim_type: expected None or text_proj, got 'image_proj'",
        ),
    ],
)
def test_a_model_that_needs_more_is_named(unet, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusersUNet(unet(**options), DDPM)


def test_classes_that_a_model_does_not_have_are_named():
    with pytest.raises(ValueError, match="num_classes: expected None for a UNet without num_class_embeds, got 10"):
        DiffusersUNet(tiny_diffusers.unet(), DDPM, num_classes=10)
    with pytest.raises(ValueError, match=r"num_classes: expected 11, as num_class_embeds, or 10, with the null label .*, got 9"):
        DiffusersUNet(tiny_diffusers.unet(num_class_embeds=11), DDPM, num_classes=9)


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r"diffusers is needed .*: pip install diffusers"):
        DiffusersUNet.from_config({"_class_name": "UNet2DModel"}, {"_class_name": "DDPMScheduler"})
