"""The likelihood of a diffusion model: the public name of `fastgen.diffusion.likelihood`."""

from fastgen.diffusion.likelihood import *  # noqa: F403
from fastgen.diffusion.likelihood import __all__ as __all__
