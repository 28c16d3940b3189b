"""Work as one CUDA graph. It imports what is there wherever torch is, since GPU tests are run without further packages."""

import dataclasses

import pytest
import torch
from torch import nn

from fastgen.config.sampling import Guidance, Sampling
from fastgen.cuda_graph import Graphed
from fastgen.diffusion.denoiser import Denoiser
from fastgen.diffusion.samplers import SAMPLERS, generate
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import group_norm, noise_key
from fastgen.pixels import signed_to_uint8
from fastgen.training.train import use_graph
from tests.helpers import recorded

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def predicts_x0(alpha, sigma):
    return None, torch.zeros_like(alpha), torch.ones_like(alpha)


class Net(nn.Module):
    num_classes = 10

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.label = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1), nn.Embedding(11, 32)

    def forward(self, x, t, label, context=None):
        h = self.stem(x) + (t[:, None] * self.label(label))[:, :, None, None]
        return self.head(group_norm(h, 8, activation="silu"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_replay_draws_what_is_drawn_without(sampler, autocast):
    """Two batches under other keys and labels than those that were recorded."""
    torch.manual_seed(0)
    net, settings = Net().cuda().requires_grad_(False), Sampling(sampler=sampler, steps=4)

    def draw(key, label):
        with torch.autocast("cuda", dtype=torch.float16, enabled=autocast):
            denoise = Denoiser(SCHEDULES["cosine"](), predicts_x0, net, Guidance(2.0, (0.1, 0.9)), label=label)
            return signed_to_uint8(generate(denoise, (1, 16, 16), key, settings))

    graphed = Graphed(draw)
    for seed in range(3):
        key, label = noise_key(seed, samples=8, device="cuda"), (torch.arange(8, device="cuda") + seed) % 10
        replayed = graphed(key, label).clone()
        assert (replayed.int() - draw(key, label).int()).abs().max() <= 1


@pytest.mark.gpu
@needs_gpu
def test_a_replay_takes_new_inputs_and_other_shapes_run_without():
    calls = []

    def double(x, y):
        calls.append(tuple(x.shape))
        return 2 * x if y is None else 2 * x + y

    graphed = Graphed(double)
    for shape in ((3,), (3,), (2,), (3,)):
        x = torch.randn(shape, device="cuda")
        torch.testing.assert_close(graphed(x, None), 2 * x)
    assert calls == [(3,), (3,), (2,)]  # once to warm up, once recorded, once without


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_a_graph_is_fed_copies_and_gives_copies(warm_up, monkeypatch):
    """It is recorded once, after the warm-up; inputs of other shapes, or absent, run without it."""
    monkeypatch.setattr("fastgen.cuda_graph.on_side_stream", lambda function: function())
    captured, calls = [], []
    monkeypatch.setattr("fastgen.cuda_graph.capture", lambda function: captured.append(1) or recorded.capture(function))

    def function(x, label, key):
        calls.append(len(x))
        return (x * 2 + key).sum() if label is None else label.sum()

    graphed = Graphed(function, warm_up=warm_up)
    inputs = [(torch.full((3,), float(i)), None, torch.ones(3)) for i in range(6)]
    results = [graphed(*row) for row in inputs]
    assert calls == [3] * (warm_up + 1)
    assert graphed(torch.zeros(2), None, torch.ones(2)) == 2
    assert graphed(torch.zeros(3), torch.ones(3), torch.ones(3)) == 3
    assert graphed(*inputs[1]) == 9
    assert calls == [3] * (warm_up + 1) + [2, 3]
    assert [r.item() for r in results] == [3 * (2 * i + 1) for i in range(6)]
    assert [x.tolist() for x, _, _ in inputs] == [[float(i)] * 3 for i in range(6)]
    assert captured == [1]


@pytest.mark.parametrize(
    ("model", "settings", "device", "ranks", "reason"),
    [
        ("UNetConfig", {}, "cpu", 1, "the device is no GPU"),
        ("UNetConfig", {}, "cuda", 2, "several ranks"),
        ("UNetConfig", {"checkpointing": True}, "cuda", 1, "checkpointing"),
        ("DiffusersConfig", {}, "cuda", 1, "not fastgen's own"),
        ("UNetConfig", {}, "cuda", 1, None),
        ("VAEConfig", {}, "cuda", 1, None),
    ],
)
def test_where_a_step_can_be_a_graph(model, settings, device, ranks, reason, monkeypatch):
    pytest.importorskip("tyro")
    from fastgen.config import schema as config

    monkeypatch.setattr("fastgen.training.train.world", lambda: ranks)
    diffusion = None if model == "VAEConfig" else config.DiffusionConfig()
    given = config.TrainConfig(config.DataConfig("digits"), getattr(config, model)(**settings), diffusion)
    auto, on, off = (dataclasses.replace(given, cuda_graph=choice) for choice in ("auto", "on", "off"))
    device = torch.device(device)
    assert use_graph(auto, device) == (reason is None)
    assert not use_graph(off, device)
    if reason is None:
        assert use_graph(on, device)
    else:
        with pytest.raises(ValueError, match=f"cuda_graph: expected auto or off: .*{reason}.*, got 'on'"):
            use_graph(on, device)
