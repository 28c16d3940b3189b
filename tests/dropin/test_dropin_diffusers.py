"""optimize on diffusers' models: the same numbers, and all that people do with such models goes on working."""

import copy
import pickle

import pytest
import torch
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from peft import LoraConfig, get_peft_model

import fastgen
from tests.helpers.diffusers_models import MODELS, autoencoder, gradients, make, skip_unet, text_unet, to, unet, vq


def norm(x):
    return x.double().norm()


def assert_close(got, expected, tolerance):
    """Each to its own norm; what is 0 but for rounding, as the gradient of a key's bias, to what is usual."""
    usual = torch.stack([norm(x) for x in expected.values()]).median()
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        error = norm(got[name] - x)
        assert error <= tolerance * max(norm(x), usual), f"{name}: {error / norm(x):.2g} of {norm(x):.2g}"


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients(build, memory_format):
    model, arguments = make(build)
    model.to(memory_format=memory_format)
    double = copy.deepcopy(model).double()
    exact = gradients(double, to(torch.float64, arguments))
    before, keys = gradients(model, arguments), list(model.state_dict())
    state = copy.deepcopy(model.state_dict())

    for changed in (model, double):
        assert {entry.kind for entry in fastgen.optimize(changed).changed} >= {"ResnetBlock2D", "GroupNorm"}
    assert_close(gradients(double, to(torch.float64, arguments)), exact, 1e-12)
    assert_close(gradients(model, arguments), before, 1e-5)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())

    fastgen.restore(model)
    after = gradients(model, arguments)
    assert all(torch.equal(x, before[name]) for name, x in after.items())


@pytest.mark.parametrize("build", [unet, text_unet, autoencoder])
def test_in_bf16_the_errors_are_no_larger(build):
    model, arguments = make(build)
    exact = gradients(copy.deepcopy(model).double(), to(torch.float64, arguments))
    model.bfloat16()
    before = gradients(model, to(torch.bfloat16, arguments))
    fastgen.optimize(model)
    after = gradients(model, to(torch.bfloat16, arguments))

    def error(got):
        return sum(norm(got[name] - x) ** 2 for name, x in exact.items()) ** 0.5

    assert error(after) <= 2 * error(before)
    assert norm(after["output"] - exact["output"]) <= 2 * norm(before["output"] - exact["output"])


@pytest.mark.parametrize("build", [unet, text_unet])
def test_training_curves(build):
    curves = []
    for optimized in (False, True):
        model, arguments = make(build)
        if optimized:
            fastgen.optimize(model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        target = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(2))
        losses = []
        for _ in range(20):
            loss = (model(*arguments)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[0][-1] < 0.9 * curves[0][0]


@pytest.mark.parametrize("build", [build for build in MODELS if build is not skip_unet])  # diffusers has a lambda there
def test_pickles_and_copies(build):
    model, arguments = make(build)
    fastgen.optimize(model)
    expected = gradients(model, arguments)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is type(model)
        assert all(torch.equal(x, expected[name]) for name, x in gradients(twin, arguments).items())
        fastgen.restore(twin)
        assert not any(type(module).__module__.startswith("fastgen") for module in twin.modules())
    assert any(type(module).__module__.startswith("fastgen") for module in model.modules())


@pytest.mark.parametrize("build", [unet, text_unet, autoencoder, vq])
def test_saved_for_diffusers_and_loaded_by_it(build, tmp_path):
    model, arguments = make(build)
    fastgen.optimize(model)
    model.save_pretrained(tmp_path)
    plain = type(make(build)[0]).from_pretrained(tmp_path)
    assert type(plain).__module__.startswith("diffusers")
    assert not any(type(module).__module__.startswith("fastgen") for module in plain.modules())
    assert_close({"output": plain(*arguments)[0]}, {"output": model(*arguments)[0]}, 1e-5)


def test_transformer_blocks():
    model, arguments = make(text_unet)
    kinds = {entry.kind for entry in fastgen.optimize(model).changed}
    assert {"BasicTransformerBlock", "GEGLU", "Attention", "Transformer2DModel"} <= kinds
    with torch.no_grad():
        expected = model(*arguments)[0]
        for block in model.modules():
            if type(block).__name__ == "BasicTransformerBlock":
                block.set_chunk_feed_forward(64, 1)  # goes to diffusers' own forward
        torch.testing.assert_close(model(*arguments)[0], expected, rtol=1e-4, atol=1e-5)


def test_what_a_module_is_an_instance_of():
    model, _ = make(unet)
    classes = {name: type(module) for name, module in model.named_modules()}
    fastgen.optimize(model)
    for name, module in model.named_modules():
        assert isinstance(module, classes[name])
        assert type(module).__name__ == classes[name].__name__
    fastgen.restore(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert set(vars(model)) == set(vars(make(unet)[0]))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("child", ["norm1", "nonlinearity", "conv1", "norm2", None])
def test_hooks_in_a_block_see_what_they_saw(child, when):
    seen = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized and when == "after":
            fastgen.optimize(model)
        block = model.down_blocks[0].resnets[0]
        hooked = block if child is None else getattr(block, child)
        calls = []
        hooked.register_forward_hook(lambda module, given, got, calls=calls: calls.append((given[0].clone(), got.clone())))
        if optimized and when == "before":
            fastgen.optimize(model)
        calls.append((model(*arguments)[0],))
        seen.append(calls)
    if child == "nonlinearity":  # of the time embedding too, unless it comes activated
        seen = [[call for call in calls if call[0].dim() == 4] for calls in seen]
    assert len(seen[0]) == len(seen[1])
    for expected, got in zip(*seen, strict=True):
        for x, y in zip(expected, got, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooked", ["conv_norm_out", "conv_act"])
def test_hooks_between_the_last_norm_and_its_activation(hooked):
    seen = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized:
            fastgen.optimize(model)
        calls = []
        getattr(model, hooked).register_forward_hook(lambda module, given, got, calls=calls: calls.append(got))
        calls.append(model(*arguments)[0])
        seen.append(calls)
    for x, y in zip(*seen, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fuse", ["before", "after"])
def test_fused_projections(fuse):
    model, arguments = make(unet)
    expected = model(*arguments)[0]
    if fuse == "after":
        fastgen.optimize(model)
    for module in model.modules():
        if hasattr(module, "fuse_projections"):
            with torch.no_grad():
                module.fuse_projections()
            module.set_processor(FusedAttnProcessor2_0())
    if fuse == "before":
        report = fastgen.optimize(model)
        assert "Attention" in {entry.kind for entry in report.changed}
    torch.testing.assert_close(model(*arguments)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", ["before", "after"])
def test_lora(lora):
    """And a norm that is trained beside it, which PEFT wraps."""
    curves = []
    for optimized in (False, True):
        model, arguments = make(text_unet)
        if optimized and lora == "after":
            fastgen.optimize(model)
        torch.manual_seed(3)
        config = LoraConfig(
            r=2, target_modules=["to_q", "to_v", "conv1", "time_emb_proj"], modules_to_save=["norm1"], init_lora_weights=False
        )
        model = get_peft_model(model, config)
        if optimized and lora == "before":
            report = fastgen.optimize(model)
            assert "its norm1 is ModulesToSaveWrapper" in {entry.text for entry in report.left if entry.kind == "ResnetBlock2D"}
        curves.append(gradients(model, arguments))
        assert any("lora_A" in name for name in curves[-1])
    assert_close(curves[1], curves[0], 1e-5)


@pytest.mark.parametrize("cast", ["before", "after"])
def test_layerwise_casting(cast):
    seen = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized and cast == "after":
            fastgen.optimize(model)
        model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        if optimized and cast == "before":
            fastgen.optimize(model)
        seen.append(model(*arguments)[0])
        assert model.down_blocks[0].resnets[0].conv1.weight.dtype == torch.bfloat16
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)


def test_autocast():
    model, arguments = make(unet)
    exact = copy.deepcopy(model).double()(*to(torch.float64, arguments))[0]
    with torch.autocast("cpu", torch.bfloat16):
        before = model(*arguments)[0]
        fastgen.optimize(model)
        after = model(*arguments)[0]
    assert after.dtype == before.dtype
    assert norm(after - exact) <= 2 * norm(before - exact)


@pytest.mark.parametrize("build", [unet, text_unet, autoencoder])
def test_gradient_checkpointing(build):
    model, arguments = make(build)
    expected = gradients(model, arguments)
    fastgen.optimize(model)
    model.train()
    model.enable_gradient_checkpointing()
    assert_close(gradients(model, arguments), expected, 1e-5)


@pytest.mark.parametrize("order", ["optimize, compile", "compile, optimize"])
def test_compiles_whole(order):
    """Once with Inductor's graphs, but without its code, which takes long to make."""
    torch._dynamo.reset()
    model, arguments = make(unet)
    expected = gradients(model, arguments)
    if order == "optimize, compile":
        fastgen.optimize(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if order == "optimize, compile" else "eager")
    assert_close(gradients(compiled, arguments), {f"_orig_mod.{n}" if n != "output" else n: x for n, x in expected.items()}, 1e-5)
    if order == "compile, optimize":
        fastgen.optimize(compiled)
        assert_close(
            gradients(compiled, arguments), {f"_orig_mod.{n}" if n != "output" else n: x for n, x in expected.items()}, 1e-5
        )
