"""What the two MNIST presets reach, trained as a user trains them. The digits are judged by a CNN trained on real ones."""

import pytest
import torch

from benchmarks.studies.digit_classifier import class_balanced, frechet_distance
from fastgen.functional import noise_key

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_mnist_draws_the_digits_asked_for(classifier, real_digits, trained):
    images, labels = trained("mnist").sample(500, guidance=1.25, batch_size=100)
    assert torch.equal(labels.bincount(), torch.full((10,), 50))
    agreement = (classifier(images).argmax(1) == labels).float().mean()

    features = classifier.features(real_digits[0])
    draws = [frechet_distance(features[class_balanced(real_digits[1], 50, seed)], features) for seed in range(20)]
    distance = frechet_distance(classifier.features(images), features)
    print(f"agreement {agreement:.3f}, Fréchet distance {distance:.2f}, {distance * 20 / sum(draws):.2f}x that of real digits")
    assert agreement >= 0.95
    assert distance <= 2.5 * sum(draws) / 20


@torch.no_grad()
def test_mnist_vae_reaches_its_bound(classifier, held_out_digits, trained):
    vae = trained("mnist-vae").model
    image, label = held_out_digits
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
