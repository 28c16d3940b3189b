"""optimize on models of one's own, what it refuses, and what it says."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fastgen
from fastgen.dropin import norms
from fastgen_kernels import dispatch


class Own(nn.Module):
    """Norms of several kinds, in and out of nn.Sequential."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(8, 8, eps=0.1),
            nn.ReLU(),
            nn.GroupNorm(1, 8, affine=False),
        )
        self.head = nn.GroupNorm(4, 8)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


def own():
    torch.manual_seed(0)
    model = Own()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def kinds(entries):
    return sorted(entry.kind for entry in entries)


def test_group_norms_and_sequentials():
    model = own()
    expected = model(X)
    report = fastgen.optimize(model)
    assert kinds(report.changed) == ["GroupNorm"] * 4 + ["Sequential"]
    assert report.left == ()
    assert not isinstance(model.body[1], fastgen.dropin.swap.Swapped)
    torch.testing.assert_close(model(X), expected)


def test_one_op_for_a_norm_and_its_activation(monkeypatch):
    calls = []
    monkeypatch.setattr("fastgen.dropin.norms.group_norm", lambda x, *_, **options: calls.append(options) or x)
    model = own()
    fastgen.optimize(model)
    model(X)
    assert calls == [{"activation": "silu"}, {}, {}, {}]


@pytest.mark.kernels
def test_kernels_are_launched():
    model = own()
    with fastgen.disabled():
        expected = model(X)
    fastgen.optimize(model, backend="triton")
    x = X.to(next(model.parameters()).device)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_slice_of_a_sequential_is_one_too():
    model = own()
    expected = model.body[:2](X.repeat(1, 3, 1, 1)[:, :8])
    fastgen.optimize(model)
    torch.testing.assert_close(model.body[:2](X.repeat(1, 3, 1, 1)[:, :8]), expected)


def test_a_shared_norm():
    norm = nn.GroupNorm(1, 3)
    model = nn.Sequential(norm, nn.SiLU(), norm)
    expected = model(X)
    assert kinds(fastgen.optimize(model).changed) == ["GroupNorm", "Sequential"]
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("dims", [0, 1, 3, 4])
def test_other_numbers_of_dimensions(dims):
    model = nn.Sequential(nn.GroupNorm(2, 4))
    x = torch.randn(2, 4, *[3] * dims)
    expected = model(x)
    fastgen.optimize(model)
    torch.testing.assert_close(model(x), expected)


def test_a_second_call_changes_what_is_new():
    model = own()
    fastgen.optimize(model)
    classes = [type(module) for module in model.modules()]
    assert fastgen.optimize(model).changed == ()
    assert [type(module) for module in model.modules()] == classes
    model.add_module("more", nn.GroupNorm(2, 8))
    assert [entry.name for entry in fastgen.optimize(model).changed] == ["more"]


def test_restore():
    model = own()
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    expected = model(X)
    fastgen.optimize(model, channels_last=True)
    fastgen.restore(model)
    for name, module in model.named_modules():
        assert (type(module), vars(module).keys()) == (before[name][0], before[name][1].keys())
    assert torch.equal(model(X), expected)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    fastgen.restore(model)  # nothing to undo


def test_a_pickle_from_before_the_rooms_is_optimized_still_and_can_be_restored():
    """Of commit cc0d5e1: torch.save of {"model": an nn.Sequential in channels_last, "x", "expected"}."""
    saved = torch.load(Path(__file__).parent / "data" / "optimized_before_rooms.pt", weights_only=False)
    model = saved["model"]
    assert [type(module).mixin.__name__ for module in (model[1], model[2])] == ["Sequential", "GroupNorm"]
    torch.testing.assert_close(model(saved["x"]), saved["expected"])
    fastgen.restore(model)
    assert [type(module) for module in (model[1], model[2])] == [nn.Sequential, nn.GroupNorm]
    torch.testing.assert_close(model(saved["x"]), saved["expected"])


def test_hooks_and_replaced_forwards_are_left():
    model = own()
    seen = []
    model.body[0].register_forward_hook(lambda module, given, got: seen.append(got))
    model.head.forward = lambda x: x
    report = fastgen.optimize(model)
    assert [(entry.name, entry.text) for entry in report.left] == [
        ("body.0", "it has hooks"),
        ("head", "its forward is replaced on the instance"),
    ]
    model(X)
    assert (seen[0] < -0.3).any()  # not activated yet


def test_a_norm_with_a_forward_of_its_own_is_left():
    class Louder(nn.GroupNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Louder(2, 8), nn.SiLU())
    report = fastgen.optimize(model)
    assert kinds(report.left) == ["Louder"]
    assert report.changed == ()


def test_a_subclass_without_one_is_changed():
    class Named(nn.GroupNorm):
        pass

    model = nn.Sequential(Named(2, 8))
    assert kinds(fastgen.optimize(model).changed) == ["Named"]
    assert isinstance(model[0], Named)


def test_channels_last():
    model = own()
    expected = copy.deepcopy(model)(X)
    assert fastgen.optimize(model).channels_last == 0  # "auto", on a CPU
    report = fastgen.optimize(model, channels_last=True)
    assert report.channels_last == 2
    assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    got = model(X)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected)


def test_parameters_stay_the_same_objects():
    model = own()
    before = [*model.parameters()]
    fastgen.optimize(model, channels_last=True)
    assert all(x is y for x, y in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ([1], {}, TypeError, "model: expected an nn.Module, got list"),
        (None, {"channels_last": "yes"}, ValueError, "channels_last: expected True, False or 'auto', got 'yes'"),
        (None, {"backend": "cuda"}, ValueError, "backend: expected 'auto' or 'triton', got 'cuda'"),
    ],
)
def test_bad_input(model, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fastgen.optimize(own() if model is None else model, **options)


def test_required_kernels_that_do_not_run_are_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    model = own().cpu()
    with pytest.raises(
        ValueError, match=r"backend: expected 'auto', since .*, \{'cpu': 'the device is a CPU'\}, got 'triton'"
    ):
        fastgen.optimize(model, backend="triton")
    assert type(model.head) is nn.GroupNorm


def test_the_report_is_a_table():
    model = own()
    model.head.register_forward_hook(lambda *_: None)
    assert str(fastgen.optimize(model)) == (
        "changed: 4\n"
        "  3  GroupNorm   group_norm        body.0, …\n"
        "  1  Sequential  GroupNorm + SiLU  body\n"
        "left: 1\n"
        "  1  GroupNorm  it has hooks  head\n"
        "0 weights made channels_last"
    )
    assert str(fastgen.optimize(nn.ReLU())) == "changed: nothing\nleft: nothing\n0 weights made channels_last"


class Modulated(nn.Module):
    """A block as in denoising-diffusion-pytorch 1.0: scale and shift, of a time embedding, between norm and activation."""

    def __init__(self):
        super().__init__()
        self.proj, self.norm, self.act = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU()

    def forward(self, x, scale_shift=None):
        x = self.proj(x)
        x = self.norm(x)
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        x = self.act(x)
        return x


class ModulatedAlways(Modulated):
    def forward(self, x, scale_shift):
        scale, shift = scale_shift
        return self.act(self.norm(self.proj(x)) * (1 + scale) + shift)


@pytest.mark.parametrize(
    ("block", "shape", "fused"),
    [
        (Modulated, (2, 8, 1, 1), True),
        (Modulated, None, True),
        (Modulated, (2, 8, 6, 5), False),
        (Modulated, (1, 8, 1, 1), False),
        (ModulatedAlways, (2, 8, 1, 1), True),
    ],
)
def test_what_is_scaled_and_shifted_before_its_activation(block, shape, fused, monkeypatch):
    """It is one op where scale and shift are one number for each image and channel."""
    torch.manual_seed(0)
    model, x = block(), torch.randn(2, 4, 6, 5)
    embedding = None if shape is None else torch.randn(2, *shape, requires_grad=True)

    def both():
        y = model(x, embedding)
        return y, *torch.autograd.grad(torch.cos(y).sum(), [*model.parameters(), *([] if shape is None else [embedding])])

    expected = both()
    calls = []
    normalize = norms.normalize
    monkeypatch.setattr(norms, "normalize", lambda *a, **k: (calls.append(k.get("activation")), normalize(*a, **k))[1])
    assert len(fastgen.optimize(model).changed) == 2  # the norm, and the block
    torch.testing.assert_close(both(), expected, rtol=1e-4, atol=1e-5)
    assert ("silu" in calls) == fused
