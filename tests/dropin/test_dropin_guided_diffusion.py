"""optimize on blocks as guided-diffusion has them."""

import copy

import pytest
import torch
from torch import nn

import fastgen
from tests.helpers.diffusers_models import gradients
from tests.helpers.guided_diffusion_unet import ResBlock, UNetModel


def make(**options):
    torch.manual_seed(0)
    return UNetModel(**options), (torch.randn(2, 3, 16, 16), torch.randn(2, 12))


@pytest.mark.parametrize("option", [False, True])
def test_outputs_and_gradients(option):
    model, arguments = make(use_scale_shift_norm=option, use_new_attention_order=option)
    before = gradients(model, arguments)
    report = fastgen.optimize(model)
    assert {entry.kind for entry in report.changed} == {"GroupNorm32", "ResBlock", "AttentionBlock", "Sequential"}
    assert report.left == ()
    after = gradients(model, arguments)
    for name, x in before.items():
        assert (after[name] - x).norm() <= 1e-5 * x.norm()
    twin = gradients(copy.deepcopy(model), arguments)
    assert all(torch.equal(x, twin[name]) for name, x in after.items())
    fastgen.restore(model)
    again = gradients(model, arguments)
    assert all(torch.equal(x, again[name]) for name, x in before.items())


def test_in_bf16_no_worse():
    model, arguments = make(use_scale_shift_norm=True)
    exact = gradients(copy.deepcopy(model), arguments)["output"]
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):  # the norms stay in fp32, as there
            module.bfloat16()
    low = tuple(x.bfloat16() for x in arguments)
    before = model(*low)[0]
    fastgen.optimize(model)
    after = model(*low)[0]
    assert after.dtype == torch.bfloat16
    assert (after - exact).norm() <= 2 * (before - exact).norm()


def test_a_fork_that_computes_something_else_is_left():
    class Fork(ResBlock):
        def _forward(self, x, emb):
            return super()._forward(x, emb) + 1

    Fork.__name__ = "ResBlock"
    block = Fork(16, 12, 16)
    report = fastgen.optimize(nn.ModuleList([block]))
    assert "ResBlock" not in {entry.kind for entry in report.changed}


def test_an_attention_of_another_order_is_left():
    """improved-diffusion's has the same name and other code."""

    class QKVAttention(nn.Module):
        def forward(self, qkv):
            return qkv.chunk(3, dim=1)[2]

    model, arguments = make()
    model.attention.attention = QKVAttention()
    before = gradients(model, arguments)
    report = fastgen.optimize(model)
    assert [(entry.name, entry.text) for entry in report.left] == [("attention", "its attention is QKVAttention")]
    after = gradients(model, arguments)
    for name, x in before.items():
        assert (after[name] - x).norm() <= 1e-5 * x.norm()
