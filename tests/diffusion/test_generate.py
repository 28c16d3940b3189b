"""Drawing: an image depends on its key alone, batches change nothing, and no step waits for the device."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastgen
from fastgen import Diffusion, UNet
from fastgen.config.sampling import Sampling
from fastgen.diffusion.samplers import SAMPLERS, TIME_GRIDS, generate
from fastgen.functional import noise_key
from fastgen.pixels import signed_to_uint8
from fastgen.runs.run import in_batches, sample_labels
from tests.helpers.all_pairs import all_pairs


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return fastgen.load(tiny_run("labelled", tmp_path_factory.mktemp("runs") / "run"))


def small(**options):
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1, 2), blocks=1, num_classes=10, **options).eval()
    nn.init.normal_(net.head.weight, std=0.1)
    return net


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_of_64_is_image_i_alone(sampler):
    denoise_all = Diffusion("cosine", "v").denoiser(net := small(), label=torch.arange(64) % 10, guidance=2.0)
    starts, settings = [], Sampling(sampler=sampler, steps=3, seed=5)

    def draw(denoise, samples):
        key = noise_key(5, samples=samples)
        return signed_to_uint8(generate(denoise, (1, 8, 8), key, settings, lambda i, x, x0_hat: starts.append(x)))

    together = draw(denoise_all, range(64))
    for i in (0, 17, 63):
        alone = draw(Diffusion("cosine", "v").denoiser(net, label=torch.tensor([i % 10]), guidance=2.0), range(i, i + 1))
        assert (alone.int() - together[i : i + 1].int()).abs().max() <= 1  # convolutions of another batch round otherwise


@pytest.mark.parametrize("times", TIME_GRIDS)
def test_steps_lie_where_the_settings_say(times):
    seen = []
    diffusion = Diffusion("cosine", "v")
    denoise = diffusion.denoiser(lambda x, t, label, context: seen.append(t[0].item()) or x)
    generate(denoise, (1, 4, 4), noise_key(2, samples=1), Sampling(times=times, steps=4))
    assert seen == pytest.approx(TIME_GRIDS[times](diffusion.schedule, 4)[:-1].tolist())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_noise_of_image_i_is_bit_equal_whatever_its_batch(sampler):
    """A denoiser that works element by element rounds alike in every batch: what is left to differ is the noise."""

    def denoise(x, t):
        return x / 2

    denoise.schedule = Diffusion("cosine", "v").schedule
    together = generate(denoise, (3, 5, 7), noise_key(2, samples=64), Sampling(sampler=sampler, steps=4))
    for i in (0, 31, 63):
        assert torch.equal(
            generate(denoise, (3, 5, 7), noise_key(2, samples=[i]), Sampling(sampler=sampler, steps=4))[0], together[i]
        )


def test_a_run_draws_image_i_alone(run):
    images, labels = run.sample(12, steps=3, seed=5, guidance=2.0)
    alone, label = run.sample(1, first=7, steps=3, seed=5, guidance=2.0)
    assert label.tolist() == labels[7:8].tolist() == [7]
    assert (alone.int() - images[7:8].int()).abs().max() <= 1
    with pytest.raises(ValueError, match="first: expected a whole number >= 0, got -1"):
        run.sample(1, first=-1)


# Batches


def test_batches_cover_the_samples_in_order():
    parts = []

    def draw(first, second, none):
        parts.append(first.tolist())
        assert torch.equal(first, second)
        assert none is None
        return first

    samples = torch.arange(3, 10)
    assert torch.equal(in_batches(draw, 3, samples, samples, None), samples)
    assert parts == [[3, 4, 5], [6, 7, 8], [9]]


def test_batches_are_halved_where_memory_is_short():
    parts = []

    def draw(part):
        if len(part) > 3:
            raise torch.OutOfMemoryError
        parts.append(len(part))
        return part

    assert in_batches(draw, 13, torch.arange(16)).tolist() == list(range(16))
    assert parts == [3] * 5 + [1]


def test_memory_that_holds_no_single_image_is_said_so():
    def draw(part):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        in_batches(draw, 4, torch.arange(4))


def test_labels_go_on_where_the_first_image_is():
    assert sample_labels(4, 10, None, 8).tolist() == [8, 9, 0, 1]
    assert sample_labels(3, 10, [3, 4], 5).tolist() == [4, 3, 4]


# Nothing waits for the device


class Waits(TorchDispatchMode):
    """Tensors on "meta" have no values, so that reading one raises; what is copied between devices is remembered."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.dim() > 0}
        if len(devices) > 1:
            self.copies.append(str(function))
        return out


GUIDED = {"guidance": 2.0, "interval": (0.1, 0.5), "rescale": 0.5}


@pytest.mark.parametrize(
    ("sampler", "schedule", "options", "times"),
    all_pairs(list(SAMPLERS), ["cosine", "rectified_flow"], [{}, GUIDED], list(TIME_GRIDS)),
)
def test_no_step_waits_for_the_device(sampler, schedule, options, times):
    """Nor does what comes before the first step and after the last, while a CUDA graph is captured: then no more is checked than
    on the meta device, which has no values. Nothing is copied from the host: a graph would copy it again from where it was."""
    net, label = small(mid_attention=False).to("meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    denoise = Diffusion(schedule, "v").denoiser(net, label=label, **options)
    key, settings = noise_key(0, samples=4, device="meta"), Sampling(sampler=sampler, times=times, steps=3)
    for _ in range(2):  # a table of betas is copied to the device in the first
        with Waits() as waits:
            images = generate(denoise, (1, 8, 8), key, settings)
    assert images.shape == (4, 1, 8, 8)
    assert waits.copies == []


def test_waiting_is_seen():
    with Waits() as waits, pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        torch.ones(3, device="meta").to("meta")[0].item()
    with waits:
        torch.ones(3).to("meta")
    assert waits.copies == ["aten._to_copy.default"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_graph_needs_a_gpu(run):
    with pytest.raises(ValueError, match="cuda_graph: expected False on a cpu, got True"):
        run.sample(2, cuda_graph=True)
