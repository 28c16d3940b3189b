"""The noise schedules: the public name of `fastgen.diffusion.schedules`."""

from fastgen.diffusion.schedules import *  # noqa: F403
from fastgen.diffusion.schedules import __all__ as __all__
