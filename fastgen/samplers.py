"""The samplers and their grids of times: the public name of `fastgen.diffusion.samplers`."""

from fastgen.diffusion.samplers import *  # noqa: F403
from fastgen.diffusion.samplers import __all__ as __all__
