"""Inpainting, editing, upscaling and interpolating: on models whose answer is known, and on small runs; what they refuse."""

import dataclasses

import pytest
import torch

import fastgen
from fastgen import Diffusion
from fastgen.applications import edit, inpaint, interpolate, upscale
from fastgen.applications.inpaint import KnownElsewhere, noised_again, repaint, reseeded
from fastgen.applications.interpolate import invert, slerp
from fastgen.config.schema import DiffusionConfig
from fastgen.diffusion.conditions import Beside, Hole, LowResolution, random_rectangles, with_hole
from fastgen.diffusion.samplers import SAMPLERS, ddim, ddpm, uniform_times
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import at, noise_key, philox_normal
from fastgen.pixels import signed_to_uint8, uint8_to_signed
from fastgen.training.train import train
from tests.helpers import tiny_runs


def made(folder, **diffusion):
    config = dataclasses.replace(tiny_runs.LABELLED, diffusion=DiffusionConfig(**diffusion))
    train(config, folder / "run")
    return fastgen.load(folder / "run")


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return fastgen.load(tiny_run("labelled", tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    return made(tmp_path_factory.mktemp("upscaler"), condition="low_resolution", factor=2)


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory):
    return made(tmp_path_factory.mktemp("inpainter"), condition="hole")


@pytest.fixture(scope="module")
def vae(tiny_run, tmp_path_factory):
    return fastgen.load(tiny_run("vae", tmp_path_factory.mktemp("runs") / "vae"))


def images(n=5, side=8):
    return torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def half(n=5, side=8):
    hole = torch.zeros(n, 1, side, side, dtype=torch.bool)
    hole[..., side // 2 :] = True
    return hole


class Correlated:
    """E[x0 | x_t] for pairs x0 ~ N(0, [[1, r], [r, 1]]) / 4, as (N, 1, 1, 2) images."""

    def __init__(self, schedule, r=0.9):
        self.schedule, self.cov = SCHEDULES[schedule](), torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64) / 4

    def __call__(self, x, t):
        alpha, sigma = self.schedule.alpha(t.reshape(1)), self.schedule.sigma(t.reshape(1))
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * torch.eye(2, dtype=torch.float64))
        return x @ gain.T


# Inpainting


@pytest.mark.parametrize(
    "options", [{}, {"resample": 3, "jump": 2, "steps": 5}, {"sampler": "ddpm", "label": 3, "guidance": 2.0}]
)
@pytest.mark.parametrize("kind", ["run", "inpainter"])
def test_known_pixels_stay_and_holes_are_filled(kind, options, request):
    x, hole = images(), half()
    out = inpaint(request.getfixturevalue(kind), x, hole, **{"steps": 5} | options)
    assert (out.shape, out.dtype) == (x.shape, torch.uint8)
    assert torch.equal(out[~hole], x[~hole])
    assert (out != x)[hole].float().mean() > 0.9


def test_no_hole_leaves_the_image_and_what_lies_in_a_hole_does_not_matter(run):
    x, hole = images(), half()
    assert torch.equal(inpaint(run, x, torch.zeros_like(hole), steps=2), x)
    assert torch.equal(inpaint(run, x, hole, steps=3), inpaint(run, x.masked_fill(hole, 200), hole, steps=3))
    all_of_it = inpaint(run, x, torch.ones_like(hole), steps=3, label=range(5), seed=4)
    assert torch.equal(all_of_it, run.sample(5, steps=3, seed=4)[0])


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
def test_resampling_brings_the_hole_to_its_conditional(schedule):
    """The known pixel is 1: the other is N(r, (1 - r²) / 4). Without going back it comes out too near to 0."""
    denoise, n = Correlated(schedule), 500
    known = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(n, 1, 1, 2)
    masked = KnownElsewhere(denoise, known, torch.tensor([[[[False, True]]]]))
    times, key = uniform_times(200).double(), noise_key(0, samples=n)
    means, deviations = [], []
    for resample in (1, 10):
        noise = philox_normal(known.shape, key, dtype=torch.float64)
        x = denoise.schedule.sigma(times[:1]) * noise + denoise.schedule.alpha(times[:1]) * known
        x0 = repaint(ddpm, masked, x, times, key, resample=resample, jump=10, callback=None)
        torch.testing.assert_close(x0[..., 0], known[..., 0])
        means.append(x0[..., 1].mean().item())
        deviations.append(x0[..., 1].std().item())
    assert means[0] < 0.7
    assert means[1] == pytest.approx(0.9, abs=0.05)
    assert deviations[1] == pytest.approx((1 - 0.9**2) ** 0.5 / 2, rel=0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rectified_flow"])
def test_noising_again_is_the_forward_process(schedule):
    schedule, n = SCHEDULES[schedule](), 20_000
    s, t = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    x_s = schedule.alpha(s) * 0.8 + schedule.sigma(s) * philox_normal((n, 1), noise_key(1, samples=n), dtype=torch.float64)
    x_t = noised_again(schedule, x_s, s, t, noise_key(2, samples=n))
    assert x_t.mean() == pytest.approx(schedule.alpha(t).item() * 0.8, abs=0.02)
    assert x_t.std() == pytest.approx(schedule.sigma(t).item(), rel=0.02)


def test_steps_are_counted_through_and_without_going_back_the_sampler_is_run_once(run):
    seen, starts = [], []

    def callback(i, x, x0_hat):
        seen.append(i)

    inpaint(run, images(), half(), steps=5, resample=2, jump=2, callback=callback)
    assert seen == list(range(10))

    def spy(denoise, x, times, **options):
        starts.append(len(times))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAMPLERS, "ddim", spy)
        inpaint(run, images(), half(), steps=5, sampler="ddim")
        inpaint(run, images(), half(), steps=5, sampler="ddim", resample=2, jump=3)
    assert starts == [6, 4, 4, 3, 3]


def test_every_stretch_has_noise_of_its_own():
    key = noise_key(5, samples=3)
    assert torch.equal(reseeded(key, 0), key)
    keys = [reseeded(key, count) for count in range(200)]
    assert len({int(k[0, 0]) for k in keys}) == 200
    assert all((k >= 0).all() and torch.equal(k[:, 1:], key[:, 1:]) for k in keys)


# Editing


def test_strength_0_gives_the_image_back_and_1_a_sample(run):
    x = images()
    assert torch.equal(edit(run, x, 0.0), x)
    drawn, _ = run.sample(5, steps=4, seed=3)
    assert torch.equal(edit(run, x, 1.0, label=range(5), steps=4, seed=3), drawn)  # no x0 is left at t = 1


def test_the_weaker_the_nearer(run):
    x = images(20)
    changes = [(edit(run, x, s, steps=20).int() - x.int()).abs().float().mean() for s in (0.05, 0.2, 0.5, 0.9)]
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_editing_noises_to_the_strength(run, monkeypatch):
    """What the sampler is given, and over which times."""
    seen = []
    monkeypatch.setitem(SAMPLERS, "ddim", lambda denoise, x, times, **_: seen.append((x, times)) or x)
    x0 = images(50)
    edit(run, x0, 0.6, steps=10, sampler="ddim")
    (x, times), *_ = seen
    torch.testing.assert_close(times, torch.linspace(0.6, 0, 7))
    assert (x - 0.4 * uint8_to_signed(x0)).std() == pytest.approx(0.6, rel=0.05)


# Upscaling, and models with a condition


def test_a_model_sees_the_small_image(upscaler):
    assert upscaler.model.in_channels == 2
    assert upscaler.model.out_channels == 1
    assert upscaler.config.diffusion.condition == "low_resolution"
    small = images(5, 4)
    out = upscale(upscaler, small, steps=3)
    assert (out.shape, out.dtype) == ((5, 1, 8, 8), torch.uint8)
    assert not torch.equal(out, upscale(upscaler, small.flip(3), steps=3))
    assert not torch.equal(out, upscale(upscaler, small, steps=3, label=3, guidance=4.0))


def test_what_a_training_image_is_seen_as():
    x0, key = torch.rand(6, 3, 8, 8) * 2 - 1, noise_key(0, samples=6)
    low = LowResolution(4)(x0, key)
    assert low.shape == x0.shape
    torch.testing.assert_close(low[:, :, 2, 7], x0[:, :, :4, 4:].mean((2, 3)))
    seen = Hole()(x0, key)
    hole = seen[:, 3:] > 0
    assert seen.shape == (6, Hole().channels(3), 8, 8)
    assert torch.equal(seen, with_hole(x0, hole))
    assert set(seen[:, 3].unique().tolist()) == {-1.0, 1.0}
    assert not seen[:, :3].masked_select(hole).any()
    assert torch.equal(seen[:, :3].masked_select(~hole), x0.masked_select(~hole))


def test_holes_are_rectangles_of_every_size_and_place():
    holes = random_rectangles(noise_key(0, samples=4000), 8, 12)[:, 0]
    rows, columns = holes.any(2), holes.any(1)
    assert torch.equal(holes, rows[:, :, None] & columns[:, None, :])
    assert (rows.diff(dim=1).sum(1) <= 2).all()  # one stretch
    share = holes.float().mean(0)
    assert share.min() > 0.05
    assert share.max() < 0.5
    assert (rows.all(1) | columns.all(1)).float().mean() > 0.05  # halves, say
    alone = random_rectangles(noise_key(0, samples=[17]), 8, 12)
    assert torch.equal(alone[0, 0], holes[17])


def test_guidance_repeats_what_is_seen():
    class Sum(torch.nn.Module):
        num_classes = 10

        def forward(self, x, t, label=None, context=None):
            return x[:, :1] + x[:, 1:]

    x, seen = torch.randn(2, 3, 1, 2, 2)
    net = Beside(Sum(), seen)
    t = torch.zeros(6)
    torch.testing.assert_close(net(torch.cat([x, x]), t), torch.cat([x + seen, x + seen]))
    assert net.num_classes == 10


def test_the_objective_shows_the_network_the_condition():
    class Net(torch.nn.Module):
        num_classes = None

        def forward(self, x, t, label=None, context=None):
            self.seen = x[:, 1:]
            return torch.zeros_like(x[:, :1])

    net, x0, key = Net(), images(4), noise_key(0, samples=4)
    fastgen.DiffusionObjective(net, Diffusion("cosine", "v"), condition=LowResolution(2))(x0, key=key)
    torch.testing.assert_close(net.seen, LowResolution(2)(uint8_to_signed(x0), key))
    fastgen.DiffusionObjective(net, Diffusion("cosine", "v"), condition=Hole())(x0, key=key)
    torch.testing.assert_close(net.seen, Hole()(uint8_to_signed(x0), at(key, stream=fastgen.noise_streams.CONDITION)))


# Interpolating


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rectified_flow"])
def test_inverting_ddim_nears_the_noise_that_gives_the_image(schedule):
    """Half the error at twice the steps, on a model that is exact."""
    denoise = Correlated(schedule)
    noise = philox_normal((50, 1, 1, 2), noise_key(0, samples=50), dtype=torch.float64)
    errors = []
    for steps in (100, 200):
        times = uniform_times(steps).double()
        x0 = ddim(denoise, noise, times)
        errors.append((ddim(denoise, invert(denoise, x0, times), times) - x0).abs().mean())
    assert errors[0] < 0.05
    assert 1.6 < errors[0] / errors[1] < 2.5


def test_an_arc_keeps_the_length_and_has_its_ends():
    a, b = torch.randn(2, 1, 3, 40, 40)
    b = b * a.norm() / b.norm()
    points = slerp(a, b, torch.linspace(0, 1, 5))
    assert points.shape == (5, 3, 40, 40)
    torch.testing.assert_close(points[:1], a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(points[-1:], b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(points.flatten(1).norm(dim=1), a.norm().expand(5))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3])), a)


def test_an_interpolation_begins_at_a_and_ends_at_b(run):
    a, b = signed_to_uint8(uint8_to_signed(images(2)) / 2)
    out = interpolate(run, a, b, 6, steps=200, label=3)
    assert (out.shape, out.dtype) == ((6, 1, 8, 8), torch.uint8)
    near = [(out[i].float() - x.float()).abs().mean() for i, x in ((0, a), (-1, b))]
    far = [(out[i].float() - x.float()).abs().mean() for i, x in ((-1, a), (0, b))]
    assert max(near) < 10
    assert min(far) > 20


# Bad input

# A VAE's codes


def test_a_vae_edits_the_codes_of_images(vae):
    x = images()
    assert torch.equal(edit(vae, x, 0.0), vae.images_of(vae.vae.reconstruct(x)))
    assert torch.equal(edit(vae, x, 1.0, seed=3), edit(vae, x.flip(0), 1.0, seed=3))  # draws, which the images tell nothing of
    near, far = (edit(vae, x, strength, batch_size=2).float() for strength in (0.1, 0.9))
    kept = edit(vae, x, 0.0).float()
    assert (near - kept).abs().mean() < (far - kept).abs().mean()
    assert torch.equal(near, edit(vae, x, 0.1).float())


def test_a_vae_goes_from_code_to_code(vae):
    a, b = images(2)
    between = interpolate(vae, a, b, 5, batch_size=2)
    ends = vae.images_of(vae.vae.reconstruct(torch.stack([a, b])))
    assert (between.shape, between.dtype) == ((5, 1, 8, 8), torch.uint8)
    assert (between[[0, -1]].int() - ends.int()).abs().max() <= 1
    middle = slerp(*vae.vae.encode(torch.stack([a, b]))[0][:, None], torch.tensor([0.5]))
    assert (between[2].int() - vae.images_of(vae.vae.decode(middle)).int()).abs().max() <= 1


WRONG = [
    (lambda run: inpaint(run, images(), half(4)), r"hole: expected bool \(5, 1, 8, 8\), got 'bool \(4, 1, 8, 8\)'"),
    (lambda run: inpaint(run, images(), half(5, 10)), r"hole: expected bool \(5, 1, 8, 8\), got 'bool \(5, 1, 10, 10\)'"),
    (lambda run: inpaint(run, images(), half().float()), r"hole: expected bool \(5, 1, 8, 8\), got 'float32"),
    (
        lambda run: inpaint(run, images(side=9), half()),
        r"images: expected uint8 images \(N, 1, 8, 8\), got 'uint8 \(5, 1, 9, 9\)'",
    ),
    (lambda run: inpaint(run, images()[:0], half(0)), r"images: expected uint8 images"),
    (lambda run: inpaint(run, images() / 255, half()), r"images: expected uint8 images \(N, 1, 8, 8\), got 'float32"),
    (lambda run: inpaint(run, images(), half(), resample=0), "resample: expected a whole number >= 1, got 0"),
    (lambda run: inpaint(run, images(), half(), jump=0), "jump: expected a whole number >= 1, got 0"),
    (lambda run: inpaint(run, images(), half(), label=10), "label: expected a class from 0 to 9, got 10"),
    (lambda run: inpaint(run, images(), half(), guidance=2.0), "guidance: expected 1 where there is neither label nor context"),
    (lambda run: inpaint(run, images(), half(), sampler="heum"), "sampler: expected one of"),
    (lambda run: edit(run, images(), -0.1), r"strength: expected a number in \[0, 1\], got -0.1"),
    (lambda run: edit(run, images(), 1.1), r"strength: expected a number in \[0, 1\], got 1.1"),
    (lambda run: edit(run, images(), float("nan")), r"strength: expected a number in \[0, 1\], got nan"),
    (lambda run: edit(run, images(side=9), 0.5), "images: expected uint8 images"),
    (lambda run: edit(run, images(), 0.5, steps=0), "steps: expected a whole number >= 1, got 0"),
    (lambda run: edit(run, images(), 0.5, guidance=float("nan")), "guidance: expected a finite number, got nan"),
    (lambda run: edit(run, images(), 0.5, label=3, negative=12), "negative: expected a class from 0 to 9, got 12"),
    (lambda run: edit(run, images(), 0.5, negative=3), "negative: expected none without a label, got 3"),
    (lambda run: edit(run, images(), 0.5, interval=(0.6, 0.4)), "interval: expected two numbers"),
    (lambda run: edit(run, images(), 0.5, rescale=-1.0), "rescale: expected"),
    (lambda run: upscale(run, images(side=4)), "run: expected one trained with diffusion.condition low_resolution"),
    (lambda run: interpolate(run, *images(2), 1), "n: expected a whole number >= 2, got 1"),
    (lambda run: interpolate(run, images(1)[0], images(1, 9)[0]), "b: expected uint8 images"),
    (lambda run: interpolate(run, *images(2), sampler="ddpm"), "sampler: expected ddim, the one that is followed backwards"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_bad_input_is_named(call, message, run):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(run)


def test_runs_that_cannot_are_named(vae, upscaler, inpainter):
    with pytest.raises(ValueError, match="run: expected that of a diffusion model, got that of a VAE"):
        inpaint(vae, images(), half())
    for wrong, message in (
        ({"label": 1}, "label: expected none, since the model has no classes"),
        ({"guidance": 2.0}, "guidance: expected 1 for a VAE"),
        ({"guide": upscaler}, "guide: expected none for a VAE"),
    ):
        with pytest.raises(ValueError, match=message):
            edit(vae, images(), 0.5, **wrong)
        with pytest.raises(ValueError, match=message):
            interpolate(vae, *images(2), **wrong)
    with pytest.raises(ValueError, match="run: expected that of a VAE, got that of a diffusion model"):
        _ = upscaler.vae
    with pytest.raises(ValueError, match=r"one without a condition, got one with diffusion.condition low_resolution"):
        upscaler.sample(2)
    with pytest.raises(ValueError, match=r"one without a condition, got one with diffusion.condition low_resolution"):
        inpaint(upscaler, images(), half())
    with pytest.raises(ValueError, match=r"run: expected one without a condition, got one with diffusion.condition hole"):
        edit(inpainter, images(), 0.5)
    with pytest.raises(ValueError, match=r"images: expected uint8 images \(N, 1, 4, 4\), got 'uint8 \(5, 1, 8, 8\)'"):
        upscale(upscaler, images())


def test_a_guide_of_another_kind_is_named(run, upscaler):
    with pytest.raises(ValueError, match="guide: expected a run with the images and the diffusion of"):
        run.sample(2, guide=upscaler, guidance=2.0)
    guided, _ = run.sample(2, guide=run, guidance=3.0, steps=2)  # a run is no weaker than itself: nothing changes
    assert (guided.int() - run.sample(2, steps=2)[0].int()).abs().max() <= 1
