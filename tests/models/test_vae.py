import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen import VAE, ConvVAE, VAEObjective
from fastgen.functional import noise_key, philox_normal

VAES = {
    "mlp": lambda **options: VAE(64, 5, **options),
    "conv": lambda **options: ConvVAE(1, 5, 8, channels=8, multipliers=(1, 2), groups=4, **options),
}


@pytest.fixture(params=[(kind, likelihood) for kind in VAES for likelihood in ("bernoulli", "gaussian")], ids="-".join)
def vae(request):
    torch.manual_seed(0)
    kind, likelihood = request.param
    return VAES[kind](likelihood=likelihood)


def images(n=6):
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_layers_of_the_mlp_vae():
    vae = VAE(784, 20)
    assert [tuple(p.shape) for p in vae.state_dict().values()] == [
        (512, 784),
        (512,),
        (256, 512),
        (256,),
        (40, 256),
        (40,),
        (256, 20),
        (256,),
        (512, 256),
        (512,),
        (784, 512),
        (784,),
    ]
    assert list(vae.state_dict())[:2] == ["encoder.0.weight", "encoder.0.bias"]
    assert isinstance(vae.decoder[-1], nn.Sigmoid)
    x = torch.rand(3, 784)
    recon, mu, logvar = vae(x)
    assert (recon.shape, mu.shape, logvar.shape) == ((3, 784), (3, 20), (3, 20))
    torch.testing.assert_close(torch.cat([mu, logvar], 1), vae.encoder(x))
    z = torch.randn(3, 20)
    torch.testing.assert_close(vae.decode(z), vae.decoder(z))


def test_reparameterize_draws_from_the_posterior():
    mu, logvar = torch.full((20_000, 1), 2.0), torch.full((20_000, 1), math.log(0.25))
    z = VAE(4, 1).reparameterize(mu, logvar)
    assert abs(z.mean() - 2) < 0.02
    assert abs(z.std() - 0.5) < 0.02


def test_elbo_is_its_formula_in_fp64(vae):
    vae, x, key = vae.double(), images(), noise_key(3, samples=6)
    mu, logvar = vae.encode(x.double() / 255)
    z = mu + (logvar / 2).exp() * philox_normal(mu.shape, key, dtype=torch.float64)
    recon, flat = vae.decode(z).flatten(1), x.flatten(1).double() / 255
    if vae.likelihood == "bernoulli":
        log_p = -F.binary_cross_entropy(recon, flat, reduction="none").sum(1)
    else:
        log_p = torch.distributions.Normal(recon, 1.0).log_prob(flat).sum(1)
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    torch.testing.assert_close(vae.elbo(x.double() / 255, key=key).double(), log_p - kl, rtol=1e-4, atol=1e-4)


def test_uint8_is_read_as_unit_range(vae):
    x, key = images(), noise_key(3, samples=6)
    torch.testing.assert_close(vae.elbo(x, key=key), vae.elbo(x / 255, key=key))


def test_the_likelihood_is_the_exact_one_where_the_decoder_ignores_z():
    """With a constant decoder and q = prior, ELBO, IWAE and log p(x) are all one number."""
    vae = VAE(4, 2)
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(3, 4)
    expected = torch.full((3,), 4 * math.log(0.5))
    torch.testing.assert_close(vae.elbo(x), expected)
    torch.testing.assert_close(vae.log_likelihood(x, 7), expected)


class LinearGaussian(VAE):
    """p(x | z) = N(z, 1), whose marginal is N(0, 2): the exact likelihood is known. q(z | x) = N(x, 1) is off."""

    def encode(self, x):
        return x, torch.zeros_like(x)

    def _log_p_x(self, x, z):
        return torch.distributions.Normal(z, 1.0).log_prob(x).sum(1)


def test_iwae_tightens_towards_the_exact_likelihood():
    vae, x = LinearGaussian(1, 1), torch.linspace(-2, 2, 2000)[:, None]
    exact = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(x).mean()
    bounds = [vae.log_likelihood(x, k, key=noise_key(0, samples=2000)).mean() for k in (1, 5, 50, 500)]
    assert bounds[0] < bounds[1] < bounds[2] < exact + 0.01
    assert abs(bounds[3] - exact) < 0.01
    torch.testing.assert_close(bounds[0], vae.elbo(x, key=noise_key(0, samples=2000)).mean(), rtol=0, atol=0.1)


def test_objective_is_the_negative_elbo_and_has_gradients(vae):
    x, key = images(), noise_key(3, samples=6)
    loss = VAEObjective(vae)(x, key=key)
    torch.testing.assert_close(loss, -vae.elbo(x, key=key))
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_anomaly_score_is_the_negative_elbo_at_the_mean(vae):
    x = images()
    mu, logvar = vae.encode(x)
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)
    torch.testing.assert_close(vae.anomaly_score(x), kl - vae._log_p_x(x, mu))


@pytest.mark.parametrize("kind", VAES)
def test_anomaly_score_is_larger_for_the_strange(kind):
    """Trained on horizontal ramps of any contrast, a VAE finds vertical ones strange."""
    torch.manual_seed(0)
    vae = VAES[kind]()
    ramps = (torch.linspace(0, 1, 8) * torch.rand(256, 1, 1, 1)).expand(256, 1, 8, 8)
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        VAEObjective(vae)(ramps).mean().backward()
        optimizer.step()
    assert vae.anomaly_score(ramps.transpose(2, 3)).mean() > vae.anomaly_score(ramps).mean() + 3


def test_sample_follows_its_key(vae):
    key = noise_key(1, samples=9)
    out = vae.sample(9, key=key)
    assert out.shape[0] == 9
    assert out.min() >= 0
    assert out.max() <= 1
    torch.testing.assert_close(vae.sample(1, key=key[4:5]), out[4:5])
    assert not torch.equal(vae.sample(9), vae.sample(9))


def test_conv_vae_shapes():
    vae = ConvVAE(3, 7, 28)
    recon, mu, logvar = vae(torch.rand(2, 3, 28, 28))
    assert (recon.shape, mu.shape, logvar.shape) == ((2, 3, 28, 28), (2, 7), (2, 7))


ERRORS = [
    (lambda: VAE(4, 2, likelihood="poisson"), "likelihood: expected one of bernoulli, gaussian, got 'poisson'"),
    (lambda: VAE(4, 2, std=0), "std: expected a finite number > 0, got 0"),
    (lambda: VAE(4, 2)(torch.rand(1, 5)), "x: expected 4 values a sample, got 5"),
    (lambda: VAE(4, 2).log_likelihood(torch.rand(1, 4), 0), "k: expected a whole number >= 1, got 0"),
    (lambda: ConvVAE(1, 2, 30), "image_size: expected a multiple of 4, got 30"),
    (lambda: ConvVAE(1, 2, 8, groups=5), "groups: expected a divisor"),
    (lambda: ConvVAE(1, 2, 8)(torch.rand(1, 1, 8, 12)), r"x: expected \(N, 1, 8, 8\), got \(1, 1, 8, 12\)"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_kl_term_is_weighed_and_annealed():
    vae, x = VAE(4, 2), torch.rand(3, 4)
    log_p_x, kl = vae.elbo_terms(x, key=noise_key(0, samples=3))
    for step, weight in ((0, 0.2), (1, 0.4), (4, 1.0), (100, 1.0)):
        objective = VAEObjective(vae, beta=2.0, kl_warmup=4)
        key = noise_key(0, step=step, samples=3)
        log_p_x, kl = vae.elbo_terms(x, key=key)
        torch.testing.assert_close(objective(x, key=key), 2 * weight * kl - log_p_x)
        torch.testing.assert_close(objective.eval()(x, key=key), 2 * kl - log_p_x)
    torch.testing.assert_close(VAEObjective(vae)(x, key=key), -vae.elbo(x, key=key))
    for wrong in ({"beta": -1.0}, {"beta": math.nan}, {"kl_warmup": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VAEObjective(vae, **wrong)
