"""`DiffusionModel`: a UNet that needs no choices."""

from torch import Tensor, nn

from fastgen.models.layers import expect_sizes
from fastgen.models.unet import UNet


class DiffusionModel(nn.Module):
    """DiffusionModel(input_dim)(x, t) -> out, of x's shape: a UNet of three levels with 64 to 128 channels.

    x: (N, input_dim, H, W), H and W multiples of 4. t: (N,) in [0, 1]. What `out` means is the prediction it is trained for.
    It has no classes and no context. `UNet` has every choice. Raises ValueError for an input_dim below 1, sizes that are not
    multiples of 4, and for a label or context.
    """

    num_classes = None

    def __init__(self, input_dim: int):
        super().__init__()
        expect_sizes(input_dim=input_dim)
        self.unet = UNet(input_dim, channels=64, multipliers=(1, 2, 2), attention_levels=(2,), blocks=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        return self.unet(x, t, label, context)
