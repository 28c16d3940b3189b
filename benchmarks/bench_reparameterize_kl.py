"""reparameterize_kl beside the sequence of PyTorch operations and diffusers' DiagonalGaussianDistribution."""

import pytest

from benchmarks.harness.ops import Absent, cases


class Halves:
    """The encoder's output as diffusers takes it, whose two halves are there already: a chunk of it costs nothing, as in ours."""

    def __init__(self, mu, logvar):
        self.halves, self.device, self.dtype = (mu, logvar), mu.device, mu.dtype

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return args[0].halves


def diffusers(case):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    def posterior(mu, logvar, key):
        if mu.dim() != 4:
            raise Absent("takes (N, C, H, W) alone")
        distribution = DiagonalGaussianDistribution(Halves(mu, logvar))
        return distribution.sample(), distribution.kl()

    return posterior


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("reparameterize_kl"), ids=lambda case: case.shape)
def test_reparameterize_kl(measured, case, direction):
    measured(case, direction, {"diffusers": diffusers})
