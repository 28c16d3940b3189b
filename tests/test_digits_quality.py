"""What the two MNIST presets reach, trained as a user trains them. The digits are judged by a CNN trained on real ones."""

import pytest
import torch

from fastgen import load, open_dataset
from fastgen.functional import noise_key
from tests.command import run
from tests.digit_classifier import class_balanced, frechet_distance, train_classifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real():
    return next(open_dataset("mnist").batches(4_500))


@pytest.fixture(scope="module")
def held_out():
    return next(open_dataset("mnist", split="test").batches(500))


@pytest.fixture(scope="module")
def classifier(held_out):
    model = train_classifier(open_dataset("mnist"))
    image, label = held_out
    with torch.no_grad():
        assert (model(image).argmax(1) == label).float().mean() > 0.97  # a judge that errs would prove nothing
    return model


def train(preset, folder):
    result = run("train", preset, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return load(folder / "run")


@torch.no_grad()
def test_mnist_draws_the_digits_asked_for(classifier, real, tmp_path):
    trained = train("mnist", tmp_path)
    images, labels = trained.sample(500, guidance=1.25, batch_size=100)
    assert torch.equal(labels.bincount(), torch.full((10,), 50))
    agreement = (classifier(images).argmax(1) == labels).float().mean()

    features = classifier.features(real[0])
    draws = [frechet_distance(features[class_balanced(real[1], 50, seed)], features) for seed in range(20)]
    distance = frechet_distance(classifier.features(images), features)
    print(f"agreement {agreement:.3f}, Fréchet distance {distance:.2f}, {distance * 20 / sum(draws):.2f}x that of real digits")
    assert agreement >= 0.95
    assert distance <= 2.5 * sum(draws) / 20


@torch.no_grad()
def test_mnist_vae_reaches_its_bound(classifier, held_out, tmp_path):
    vae = train("mnist-vae", tmp_path).model
    image, label = held_out
    elbo = torch.stack([vae.elbo(image, key=noise_key(seed, samples=500)).mean() for seed in range(5)]).mean()
    bounds = [vae.log_likelihood(image, k, key=noise_key(0, samples=500)).mean() for k in (1, 10, 100)]
    reconstructed = vae.decode(vae.encode(image)[0]).view_as(image) * 255
    agreement = (classifier(reconstructed).argmax(1) == label).float().mean()
    print(f"ELBO {elbo:.1f}, IWAE with 10: {bounds[1]:.1f}, with 100: {bounds[2]:.1f} nats; agreement {agreement:.3f}")
    assert elbo >= -107
    assert elbo < bounds[1] < bounds[2]
    assert abs(bounds[0] - elbo) < 0.5
    assert agreement >= 0.9
    assert (vae.anomaly_score(image.flip(2)).mean() > vae.anomaly_score(image).mean() + 5).item()  # upside down is strange
