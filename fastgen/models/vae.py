"""Variational autoencoders with a latent vector: what they have in common, and the MLP VAE."""

import math

import torch
from torch import Tensor, nn

from fastgen import noise_streams
from fastgen.errors import expect, is_number, is_whole, lookup
from fastgen.functional import at, fresh_key, philox_normal, reconstruction_nll, reparameterize_kl
from fastgen.models.layers import expect_sizes
from fastgen.pixels import uint8_to_unit
from fastgen_kernels.checks import check_float, check_float_or_uint8, check_shape
from fastgen_kernels.reconstruction_nll import LIKELIHOODS, Likelihood


class VariationalAutoencoder(nn.Module):
    """p(x, z) = N(z; 0, I) p(x | z) with the approximate posterior q(z | x) = N(mu, exp(logvar)) (Kingma & Welling 2014,
    arXiv:1312.6114).

    A subclass has `latent_dim`, `encode` and `decode_logits`. x: floating in [0, 1], or uint8, which is read as x / 255. p(x | z)
    is "bernoulli", a cross-entropy that takes grey values as probabilities, or "gaussian" around the decoded image with standard
    deviation `std`. Likelihoods are in nats.

    Raises ValueError for another likelihood, or a std that is not positive.
    """

    latent_dim: int

    def __init__(self, *, likelihood: Likelihood = "bernoulli", std: float = 1.0):
        super().__init__()
        lookup("likelihood", likelihood, dict.fromkeys(LIKELIHOODS))
        expect("std", std, is_number(std, 0) and std > 0, "a finite number > 0")
        self.likelihood, self.std = likelihood, std

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x), each (N, latent_dim): the halves of one tensor. Raises ValueError for an x of another
        shape."""
        raise NotImplementedError

    def decode_logits(self, z: Tensor) -> Tensor:
        """z (N, latent_dim) to images before the sigmoid."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """z (N, latent_dim) to images in [0, 1]. Raises TypeError for what is not floating, ValueError for another shape."""
        check_float(z=z)
        check_shape((*z.shape[:1], self.latent_dim), "(N, latent_dim)", z=z)
        return self.decode_logits(z).sigmoid()

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """z = mu + exp(logvar / 2) · eps, (N, latent_dim), with a new eps ~ N(0, I) from torch's generator (Kingma & Welling
        2014, eq. 10)."""
        return reparameterize_kl(mu, logvar)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """recon, images in [0, 1] decoded at one z ~ q(z | x), and mu, logvar, each (N, latent_dim)."""
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def reconstruct(self, x: Tensor) -> Tensor:
        """x as it is decoded at the mean of q(z | x), in [0, 1] and of x's shape. Raises ValueError as `encode` does."""
        return self.decode(self.encode(x)[0]).view(x.shape)

    def elbo(self, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        """log p(x | z) - KL(q || p) at one z ~ q(z | x), (N,) fp32 nats: in expectation a lower bound of log p(x) (Kingma &
        Welling 2014, eq. 3). key: (N, 4), drawn from torch's generator when None."""
        log_p_x, kl = self.elbo_terms(x, key=key)
        return log_p_x - kl

    def elbo_terms(self, x: Tensor, *, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log p(x | z) at one z ~ q(z | x), and KL(q || p), each (N,) fp32 nats, whose difference is the ELBO. A KL near 0 for
        all x says that the posterior has collapsed: z tells nothing of x. key: as `elbo`'s."""
        check_float_or_uint8(x=x)
        x = uint8_to_unit(x)
        mu, logvar = self.encode(x)
        z, kl = reparameterize_kl(mu, logvar, key=key)
        return self._log_p_x(x, z), kl

    def anomaly_score(self, x: Tensor) -> Tensor:
        """The negative ELBO at z = mu, (N,) fp32 nats, larger for stranger x. No noise is drawn: it is a function of x."""
        mu, logvar = self.encode(x)
        z, kl = reparameterize_kl(mu, logvar, eps=torch.zeros_like(mu))
        return kl - self._log_p_x(x, z)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, k: int = 100, *, key: Tensor | None = None) -> Tensor:
        """The importance-weighted bound log 1/k Σ p(x, z_i) / q(z_i | x), (N,) fp32 nats, tighter with k (Burda et al. 2016,
        arXiv:1509.00519, eq. 8). key: (N, 4), drawn from torch's generator when None. Raises ValueError for k < 1."""
        expect("k", k, is_whole(k, 1), "a whole number >= 1")
        key = fresh_key(x.shape[0], x.device) if key is None else key
        mu, logvar = self.encode(x)
        weights = []
        for i in range(k):  # one z at a time: k decoded batches would not fit
            eps = philox_normal(mu.shape, at(key, step=i))
            z, _ = reparameterize_kl(mu, logvar, eps=eps.to(mu.dtype))
            log_p_z, log_q_z = -0.5 * z.float() ** 2, -0.5 * (eps**2 + logvar.float())
            weights.append(self._log_p_x(x, z) + (log_p_z - log_q_z).sum(1))
        return torch.stack(weights).logsumexp(0) - math.log(k)

    @torch.no_grad()
    def sample(self, n: int, *, key: Tensor | None = None) -> Tensor:
        """n images in [0, 1], decoded at draws from the prior. key: (n, 4), drawn from torch's generator when None. Raises
        ValueError for n below 1."""
        expect("n", n, is_whole(n, 1), "a whole number >= 1")
        device = next(self.parameters()).device
        key = fresh_key(n, device) if key is None else key
        return self.decode(philox_normal((n, self.latent_dim), at(key, stream=noise_streams.START)))

    def _log_p_x(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), summed over the image: (N,) fp32, fp64 for fp64 logits."""
        logits = self.decode_logits(z)
        return -reconstruction_nll(logits, x.reshape(logits.shape), likelihood=self.likelihood, std=self.std)


class VAE(VariationalAutoencoder):
    """The MLP VAE: input_dim - 512 - 256 - latent_dim and back, ReLU between, a sigmoid at the end; see VariationalAutoencoder.

    x: (N, input_dim), or images of input_dim values in all. Images come back flat: (N, input_dim). Raises ValueError, in
    `encode`, for an x of another size.
    """

    def __init__(self, input_dim: int, latent_dim: int, *, likelihood: Likelihood = "bernoulli", std: float = 1.0):
        super().__init__(likelihood=likelihood, std=std)
        expect_sizes(input_dim=input_dim, latent_dim=latent_dim)
        self.input_dim, self.latent_dim = input_dim, latent_dim
        self.encoder = nn.Sequential(
            nn.Linear(input_dim, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, input_dim), nn.Sigmoid()
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_float_or_uint8(x=x)
        x = uint8_to_unit(x).flatten(1)
        if x.shape[1] != self.input_dim:
            raise ValueError(f"x: expected {self.input_dim} values a sample, got {x.shape[1]}")
        return self.encoder(x).chunk(2, dim=1)

    def decode_logits(self, z: Tensor) -> Tensor:
        for layer in list(self.decoder)[:-1]:
            z = layer(z)
        return z


class VAEObjective(nn.Module):
    """The negative ELBO in nats, its KL term times `beta` (beta-VAE, Higgins et al. 2017, eq. 4), which in training rises from 0
    over the first `kl_warmup` steps, as the key counts them (Bowman et al. 2016, arXiv:1511.06349, section 3.1).

    Raises ValueError for what is no VAE, a beta that is negative or not finite, and a negative kl_warmup."""

    def __init__(self, vae: VariationalAutoencoder, *, beta: float = 1.0, kl_warmup: int = 0):
        super().__init__()
        expect("vae", type(vae).__name__, isinstance(vae, VariationalAutoencoder), "a VAE of fastgen")
        expect("beta", beta, is_number(beta, 0), "a finite number >= 0")
        expect("kl_warmup", kl_warmup, is_whole(kl_warmup, 0), "a whole number >= 0")
        self.vae, self.beta, self.kl_warmup = vae, beta, kl_warmup

    def forward(self, x: Tensor, label: Tensor | None = None, *, key: Tensor | None = None) -> Tensor:
        """x: images as the VAE takes them. label is not used. key: the noise, (N, 4); from torch's generator when None."""
        if self.beta == 1 and not (self.training and self.kl_warmup):
            return -self.vae.elbo(x, key=key)
        log_p_x, kl = self.vae.elbo_terms(x, key=key)
        if self.training and self.kl_warmup and key is not None:
            kl = kl * ((key[:, 2] + 1) / (self.kl_warmup + 1)).clamp(max=1)
        return self.beta * kl - log_p_x
