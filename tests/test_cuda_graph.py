"""Drawing as one CUDA graph. It imports what is there wherever torch is, since GPU tests are run without further packages."""

import pytest
import torch
from torch import nn

from fastgen.cuda_graph import Graphed
from fastgen.denoiser import Denoiser
from fastgen.functional import group_norm, noise_key
from fastgen.generate import generate
from fastgen.samplers import SAMPLERS
from fastgen.sampling import Sampling
from fastgen.schedules import SCHEDULES

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")


class PredictsX0:
    schedule = SCHEDULES["cosine"]()

    def preconditioning(self, t):
        return None, torch.zeros_like(t), torch.ones_like(t)


class Net(nn.Module):
    num_classes = 10

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.label = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1), nn.Embedding(11, 32)

    def forward(self, x, t, label, context=None):
        h = self.stem(x) + (t[:, None] * self.label(label))[:, :, None, None]
        return self.head(group_norm(h, 8, activation="silu"))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_replay_draws_what_is_drawn_without(sampler, autocast):
    """Two batches under other keys and labels than those that were recorded."""
    torch.manual_seed(0)
    net, settings = Net().cuda().requires_grad_(False), Sampling(sampler=sampler, steps=4)

    def draw(key, label):
        with torch.autocast("cuda", dtype=torch.float16, enabled=autocast):
            denoise = Denoiser(PredictsX0(), net, label=label, guidance=2.0, interval=(0.1, 0.9))
            return generate(denoise, (1, 16, 16), key, settings)

    graphed = Graphed(draw)
    for seed in range(3):
        key, label = noise_key(seed, samples=8, device="cuda"), (torch.arange(8, device="cuda") + seed) % 10
        replayed = graphed(key, label).clone()
        assert (replayed.int() - draw(key, label).int()).abs().max() <= 1


def test_a_replay_takes_new_inputs_and_other_shapes_run_without():
    calls = []

    def double(x, y):
        calls.append(tuple(x.shape))
        return 2 * x if y is None else 2 * x + y

    graphed = Graphed(double)
    for shape in ((3,), (3,), (2,), (3,)):
        x = torch.randn(shape, device="cuda")
        torch.testing.assert_close(graphed(x, None), 2 * x)
    assert calls == [(3,), (3,), (2,)]  # once before recording, once recorded, once without
