"""Uses of a trained run besides sampling: a function each, on uint8 images (N, C, H, W)."""

from fastgen.applications.edit import edit
from fastgen.applications.inpaint import inpaint
from fastgen.applications.interpolate import interpolate
from fastgen.applications.upscale import upscale

__all__ = ["edit", "inpaint", "interpolate", "upscale"]
