"""Anything with pixels (a picture, an array, a tensor) as uint8, channels first."""

from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def uint8_pixels(array: np.ndarray) -> np.ndarray:
    """uint8 as it is; floats in [0, 1] times 255, rounded. Raises ValueError, naming min and max, for others."""
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    low, high = array.min(), array.max()
    if array.dtype.kind != "f" or not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise ValueError(f"images: expected uint8, or float in [0, 1], got {array.dtype} with min {low}, max {high}")
    return np.rint(array.astype(np.float32, copy=False) * 255).astype(np.uint8)


def to_nchw(array: np.ndarray) -> np.ndarray:
    """View of (N, H, W), (N, C, H, W) or (N, H, W, C) as (N, C, H, W); raises ValueError for other shapes.

    Channels first needs C of 1 or 3 and is taken where both readings are possible, e.g. (N, 3, 32, 3);
    channels last may also have C = 4, RGBA.
    """
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3, 4):
        return array.transpose(0, 3, 1, 2)
    expected = "(N, H, W), (N, C, H, W) with C of 1 or 3, or (N, H, W, C) with C of 1, 3 or 4"
    raise ValueError(f"images: expected shape {expected}, got {array.shape}")


def from_array(array: Any, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """uint8 (N, C, H, W) of a batch in any form that uint8_pixels and to_nchw take, a tensor or an array."""
    images = to_nchw(uint8_pixels(as_numpy(array)))
    if images.shape[1] == 4:
        images = _on_white(images)
    _, c, h, w = images.shape
    if (channels or c, size or h, size or w) != (c, h, w):
        images = np.stack([from_picture(_picture(image), size, channels) for image in images])
    return images


def from_item(image: Any, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """uint8 (C, H, W) of one PIL image, or of an array or tensor (H, W), (C, H, W) or (H, W, C)."""
    if isinstance(image, Image.Image):
        return from_picture(image, size, channels)
    return from_array(as_numpy(image)[None], size, channels)[0]


def from_picture(image: Image.Image, size: int | None = None, channels: int | None = None) -> np.ndarray:
    """uint8 (C, H, W) of a PIL image, turned as its EXIF says, alpha laid on white.

    size: cut the largest centred square and scale it to size x size (Lanczos, antialiased); None: as it is.
    channels: 1 or 3; None: 1 for grey pictures, else 3.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose copies even what stands upright
        image = ImageOps.exif_transpose(image)
    image = _opaque(image)
    if size is not None and image.size != (size, size):
        image = _square(image, size)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def as_numpy(array: Any) -> np.ndarray:
    """An array or a tensor on any device, as an array; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array
        return array.numpy()
    return np.asarray(array)


def _opaque(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB."""
    if image.mode.startswith("I"):
        return Image.fromarray(_from_16_bits(np.asarray(image)))
    if image.mode == "F":
        return Image.fromarray(uint8_pixels(np.asarray(image)))
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if "transparency" in image.info or image.mode.upper().endswith("A"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))  # resize(box=) would blend in what lies around the box
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _from_16_bits(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"images: expected grey ones of 16 bits, from 0 to 65535, got min {grey.min()}, max {grey.max()}")
    return ((grey.astype(np.int32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 (N, 4, H, W) -> (N, 3, H, W)."""
    rgb, alpha = rgba[:, :3].astype(np.uint16), rgba[:, 3:].astype(np.uint16)
    return ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
