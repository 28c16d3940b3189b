"""A convolutional VAE with a latent vector: for embedding, anomalies and small images."""

from torch import Tensor, nn

from fastgen.models.layers import GroupNorm, ResBlock, Residual, Upsample, conv, expect_sizes, level_widths
from fastgen.models.vae import VariationalAutoencoder
from fastgen.pixels import uint8_to_unit
from fastgen_kernels.checks import check_float_or_uint8
from fastgen_kernels.reconstruction_nll import Likelihood


class ConvVAE(VariationalAutoencoder):
    """x: (N, in_channels, image_size, image_size) to a latent vector and back; see VariationalAutoencoder.

    channels: width at the first level; multipliers: width of each level over it, each level half the size of the one before, so
    image_size must be a multiple of 2^(levels - 1); blocks: residual blocks per level; groups: of every GroupNorm.

    Raises ValueError for sizes below 1, an image_size or groups that do not fit, and, in `encode`, for images of another shape.
    """

    def __init__(
        self,
        in_channels: int,
        latent_dim: int,
        image_size: int,
        *,
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        groups: int = 8,
        likelihood: Likelihood = "bernoulli",
        std: float = 1.0,
    ):
        super().__init__(likelihood=likelihood, std=std)
        expect_sizes(in_channels=in_channels, latent_dim=latent_dim, image_size=image_size)
        expect_sizes(channels=channels, blocks=blocks, groups=groups)
        widths = level_widths(channels, multipliers)
        side, rest = divmod(image_size, 2 ** (len(widths) - 1))
        if rest or side == 0:
            raise ValueError(f"image_size: expected a multiple of {2 ** (len(widths) - 1)}, got {image_size}")
        if any(width % groups for width in widths):
            raise ValueError(f"groups: expected a divisor of every level's channels {widths}, got {groups}")
        self.latent_dim, self.shape = latent_dim, (in_channels, image_size, image_size)

        encoder: list[nn.Module] = [conv(2, in_channels, channels)]
        width = channels
        for level, cout in enumerate(widths):
            if level > 0:
                encoder.append(conv(2, width, width, stride=2))
            for _ in range(blocks):
                encoder.append(ResBlock(2, width, cout, groups))
                width = cout
        encoder += [GroupNorm(groups, width), nn.Flatten(), nn.Linear(width * side**2, 2 * latent_dim)]

        decoder: list[nn.Module] = [nn.Linear(latent_dim, width * side**2), nn.Unflatten(1, (width, side, side))]
        for level, cout in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                decoder.append(ResBlock(2, width, cout, groups))
                width = cout
            if level > 0:
                decoder.append(Upsample(2, width))
        decoder += [GroupNorm(groups, width), conv(2, width, in_channels)]

        self.encoder, self.decoder = Stack(*encoder), Stack(*decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_float_or_uint8(x=x)
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: expected (N, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return self.encoder(uint8_to_unit(x)).chunk(2, dim=1)

    def decode_logits(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class Stack(nn.Sequential):
    """Layers in order, (N, …) to (N, …). SiLU follows every norm, and a norm adds what the residual block before it left."""

    def forward(self, x: Tensor) -> Tensor:
        h = Residual(x)
        for layer in self:
            if isinstance(layer, ResBlock):
                h, _ = layer(h)
            elif isinstance(layer, GroupNorm):
                h = Residual(layer(h, activation="silu")[0])
            else:
                h = Residual(layer(h.sum()))
        return h.sum()
