"""Images and masks of any size, fitted to the size that a model knows."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastgen.data.convert import from_picture
from fastgen.errors import expect, lookup
from fastgen.files.images import opened, to_picture

Fit = Literal["crop", "resize", "pad"]
Hole = Literal["auto", "painted", "transparent", "white", "black"]


def fit_image(image: Tensor, size: tuple[int, ...], how: Fit, resampling: int = Image.Resampling.LANCZOS) -> tuple[Tensor, str]:
    """An image, uint8 (C, h, w), as uint8 (C, *size), and what was done to it, "" where it has that size.

    how: "crop" cuts the largest centred box of the proportions of `size`, and scales it; "resize" scales each side by itself;
    "pad" scales both alike, and adds black borders. Raises ValueError for another."""
    lookup("fit", how, dict.fromkeys(get_args(Fit)))
    height, width = size
    picture = to_picture(image)
    w, h = picture.size
    if (w, h) == (width, height):
        return image, ""
    done = f"scaled to {width}x{height}"
    if how == "crop":
        box = min(w, max(1, round(h * width / height))), min(h, max(1, round(w * height / width)))
        left, top = (w - box[0]) // 2, (h - box[1]) // 2
        picture = picture.crop((left, top, left + box[0], top + box[1]))
        if box != (w, h):
            done = f"cropped to the {box[0]}x{box[1]} in its middle and {done}"
    inner = width, height
    if how == "pad":
        scale = min(width / w, height / h)
        inner = max(1, round(w * scale)), max(1, round(h * scale))
        if inner != (width, height):
            done = f"scaled to {inner[0]}x{inner[1]} and padded with black to {width}x{height}"
    canvas = Image.new(picture.mode, (width, height))
    canvas.paste(picture.resize(inner, resampling), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return torch.tensor(from_picture(canvas)), done


def fit_hole(hole: Tensor, size: tuple[int, ...], how: Fit) -> Tensor:
    """A hole, bool (1, h, w), as bool (1, *size): all pixels that it touches. how: as `fit_image` takes it, and so are the
    errors."""
    return fit_image(hole.to(torch.uint8) * 255, size, how, Image.Resampling.BOX)[0] > 0


def read_hole(argument: str, path: Path, marked: Hole = "auto") -> tuple[Tensor, str]:
    """The hole in a mask, bool (1, h, w) in the pixels of its file, and what marks it: "painted", what is opaque in a layer that
    else is transparent; "transparent", the opposite; "white" or "black", what is nearer to that colour. "auto" is "painted"
    where the file has transparent pixels, else "white".

    Raises ValueError that names the argument for a file that cannot be read, and for one without a hole."""
    lookup("hole", marked, dict.fromkeys(get_args(Hole)))
    with opened(argument, path) as picture:
        upright = ImageOps.exif_transpose(picture)
        has_alpha = "transparency" in picture.info or picture.mode.upper().endswith("A")
        layer = upright.convert("RGBA") if has_alpha else None
        alpha = np.full((upright.height, upright.width), 255) if layer is None else np.asarray(layer)[..., 3]
        painted = alpha >= 32  # by a brush that lets what is below shine through, too
        if marked == "auto":
            marked = "white" if painted.all() else "painted"
        if layer is not None and marked in ("white", "black"):  # what is transparent is of the other colour
            ground = Image.new("RGBA", layer.size, "black" if marked == "white" else "white")
            upright = Image.alpha_composite(ground, layer).convert("RGB")
        white = from_picture(upright, channels=1)[0] >= 128
    hole = {"painted": painted, "transparent": alpha < 128, "white": white, "black": ~white}[marked]
    expect(argument, str(path), hole.any(), f"a hole, {marked} pixels, in the image")
    return torch.tensor(hole)[None], marked
