"""Drawing as one CUDA graph."""

import pytest
import torch
from torch import nn

from fastgen import Diffusion, UNet
from fastgen.cuda_graph import Graphed
from fastgen.functional import noise_key
from fastgen.generate import generate
from fastgen.samplers import SAMPLERS
from fastgen.sampling import Sampling

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_replay_draws_what_is_drawn_without(sampler, autocast):
    """Two batches under other keys and labels than those that were recorded."""
    torch.manual_seed(0)
    net = UNet(1, channels=32, groups=8, multipliers=(1, 2), blocks=1, num_classes=10).cuda().eval()
    nn.init.normal_(net.head.weight, std=0.1)
    diffusion, settings = Diffusion("cosine", "v"), Sampling(sampler=sampler, steps=4)

    def draw(key, label):
        with torch.autocast("cuda", dtype=torch.float16, enabled=autocast):
            denoise = diffusion.denoiser(net, label=label, guidance=2.0, interval=(0.1, 0.9))
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
