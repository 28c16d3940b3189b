"""What is done with the digits' models after training: repairing, editing, enlarging, guiding. Judged by pixels and by a CNN."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.studies.digit_classifier import class_balanced, frechet_distance, recall
from fastgen.applications import edit, inpaint, interpolate, upscale

pytestmark = pytest.mark.slow

N = 200


def agreement(classifier, images, label):
    with torch.no_grad():
        return (classifier(images).argmax(1) == label).float().mean().item()


HALVES = (
    (slice(0, 14), slice(None)),
    (slice(14, None), slice(None)),
    (slice(None), slice(0, 14)),
    (slice(None), slice(14, None)),
)


@pytest.mark.parametrize(
    ("preset", "told", "options", "least"),
    [
        ("mnist", True, {"guidance": 1.25, "sampler": "ddpm", "resample": 5}, 0.9),
        ("mnist", False, {"sampler": "ddpm", "resample": 5}, 0.55),
        ("mnist-inpaint", False, {"resample": 3, "jump": 5}, 0.6),
    ],
)
def test_half_a_digit_is_repaired(preset, told, options, least, trained, held_out_digits, classifier):
    """The upper, lower, left or right half is hidden, in turn. `told`: the model is told which digit it is; untold it may well
    make another digit of what is left."""
    image, label = (x[:N] for x in held_out_digits)
    hole = torch.zeros(N, 1, 28, 28, dtype=torch.bool)
    for i in range(N):
        hole[i, 0][HALVES[i % 4]] = True
    repaired = inpaint(trained(preset), image, hole, label=label.tolist() if told else None, batch_size=100, **options)
    assert torch.equal(repaired[~hole], image[~hole])

    def error(filled):
        return (filled.float() - image.float())[hole].div(255).square().mean().item()

    known = image.masked_fill(hole, 0).float()
    fills = {"repaired": repaired, "mean": known.mean((1, 2, 3), keepdim=True).mul(2).expand_as(known), "nearest": nearest(known)}
    errors, right = {name: error(filled) for name, filled in fills.items()}, agreement(classifier, repaired, label)
    print(preset, "told" if told else "untold", errors, f"recognised: {right:.3f}")
    assert errors["repaired"] < errors["mean"]
    assert errors["repaired"] < errors["nearest"]
    assert right >= least


def nearest(image):
    """Every hidden pixel as the nearest known one, for the halves in turn."""
    edge = image[0::4, :, 14:15], image[1::4, :, 13:14], image[2::4, :, :, 14:15], image[3::4, :, :, 13:14]
    filled = torch.empty_like(image)
    for i, line in enumerate(edge):
        filled[i::4] = line.expand_as(filled[i::4])
    return filled


def test_editing_turns_a_digit_into_another(trained, held_out_digits, classifier):
    image, label = held_out_digits
    run, wanted = trained("mnist"), (label + 5) % 10
    assert torch.equal(edit(run, image, 0.0, label=wanted.tolist()), image)
    changed = {s: edit(run, image, s, label=wanted.tolist(), guidance=1.25) for s in (0.3, 0.6, 0.9)}
    kept = [agreement(classifier, x, label) for x in changed.values()]
    turned = [agreement(classifier, x, wanted) for x in changed.values()]
    distance = [(x.float() - image.float()).square().mean().item() for x in changed.values()]
    print("kept", kept, "turned", turned, "distance", distance)
    assert kept == sorted(kept, reverse=True)
    assert turned == sorted(turned)
    assert distance == sorted(distance)
    assert turned[-1] > 0.9
    assert kept[0] > 0.9


def test_an_interpolation_starts_and_ends_at_its_images(trained, held_out_digits):
    image, _ = held_out_digits
    run = trained("mnist")
    errors = []
    for i in range(0, 8, 2):
        between = interpolate(run, image[i], image[i + 1], 5, steps=100).float()
        errors += [(between[0] - image[i]).div(255).square().mean(), (between[-1] - image[i + 1]).div(255).square().mean()]
    print("error of the ends", torch.stack(errors))
    assert torch.stack(errors).mean() < 0.01  # of a digit's 0.1


def test_an_enlarged_digit_is_nearer_to_the_real_than_bicubic(trained, held_out_digits, real_digits, classifier):
    image, label = held_out_digits
    small = F.avg_pool2d(image.float(), 4).round().to(torch.uint8)
    large = upscale(trained("mnist-upscale"), small, batch_size=100)
    bicubic = [np.asarray(Image.fromarray(x[0].numpy()).resize((28, 28), Image.Resampling.BICUBIC)) for x in small]
    with torch.no_grad():
        features = classifier.features(real_digits[0])
        drawn = {"upscale": large, "bicubic": torch.tensor(np.stack(bicubic))[:, None], "the images themselves": image}
        distance = {name: frechet_distance(classifier.features(x), features) for name, x in drawn.items()}
    print(distance, {name: agreement(classifier, x, label) for name, x in drawn.items()})
    assert distance["upscale"] < distance["bicubic"] / 4
    assert agreement(classifier, large, label) > 0.85
    shrunk = F.avg_pool2d(large.float(), 4)
    assert (shrunk - small.float()).abs().mean() < 8  # of 255: it is the small image's enlargement


def test_guidance_gives_the_label_at_the_cost_of_variety(trained, real_digits, classifier):
    run, right, variety = trained("mnist"), [], []
    with torch.no_grad():
        features = classifier.features(real_digits[0][class_balanced(real_digits[1], 60, 0)])
    for w in (0.0, 0.5, 1.0, 1.25, 3.0):
        images, labels = run.sample(400, guidance=w, batch_size=100)
        right.append(agreement(classifier, images, labels))
        with torch.no_grad():
            variety.append(recall(classifier.features(images), features))
    print("agreement", right, "recall", variety)
    assert right[:4] == sorted(right[:4])
    assert right[0] < 0.2
    assert right[3] > 0.9
    assert variety[4] < variety[2] - 0.05
