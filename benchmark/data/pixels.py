"""One image file to RGB, whatever its mode: what is done to its pixels on the way is noted, never guessed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageOps

from benchmark.errors import UserError

ROTATED = "rotated as EXIF data say"
SCALED = "scaled from 16 bits to 8"
OPAQUE = "taken as opaque (transparency is left out)"
FIRST = "of several frames, the first of which was read"
COLOURS = ("LAB", "HSV", "YCbCr", "CMYK")  # modes of other colours, turned into RGB as Pillow does it


def read_image(path: str, notes: list[str] | None = None) -> Image.Image:
    """Decode one image as RGB, upright; raises UserError naming the file when that fails.

    What was done to its pixels is added to `notes`. Invariant: a file whose mode is RGB or L and whose EXIF data, if
    any, call for no rotation is what Pillow's `convert("RGB")` gives.
    """
    try:
        with Image.open(path) as opened:
            return to_rgb(opened, notes)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        refuse_image(path, error)


def to_rgb(image: Image.Image, notes: list[str] | None = None) -> Image.Image:
    """Return an opened image decoded, upright and as RGB; see `read_image`. Raises ValueError where nobody can say how.

    16 bits become 8 by their upper half, as Pillow reads RGB of 16 bits. Transparency is left out and not filled.
    """
    told: list[str] = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose others are previews of the first
        told.append(FIRST)
    turned = orientation(image) != 1  # asked first: a TIFF file is turned as it is loaded
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    told += [ROTATED] if turned else []
    if image.mode.startswith("I") or image.mode == "F":
        image = to_eight_bits(image)
        told.append(SCALED)
    if is_transparent(image):
        told.append(OPAQUE)
    if image.mode in COLOURS:
        told.append(f"turned from {image.mode} to RGB")
    if notes is not None:
        notes += told
    if image.mode in ("P", "PA", "La", "RGBa"):  # straight to RGB, Pillow warns of these or refuses
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """Return the orientation that an image's EXIF data ask for, 1 to 8; 1, which is upright, where they say nothing."""
    asked: int | None = None
    with contextlib.suppress(Exception):  # EXIF data that cannot be read cost no image
        asked = image.getexif().get(ExifTags.Base.Orientation)
    return asked if asked is not None and asked in range(2, 9) else 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits as L. Raises ValueError where black and white are not known: floats, 32 bits."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and nothing says which is white: save 8 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two are of 16 bits at most
        raise ValueError("its pixels are whole numbers of 32 bits, and nothing says which is white: save 8 or 16 bits")
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def is_transparent(image: Image.Image) -> bool:
    """Return whether a pixel of the image is not opaque."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return bool(image.getextrema()[-1][0] < 255)  # type: ignore[index, misc]
    if "transparency" not in image.info:
        return False
    return bool(image.convert("RGBA").getextrema()[3][0] < 255)  # type: ignore[index, misc]


def refuse_image(path: str | Path, error: Exception) -> NoReturn:
    """Raise UserError: the image at `path` can't be decoded because of `error`."""
    raise UserError(f"{path}: can't be decoded as an image ({error}); replace or remove the file") from error


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side is `size` and cut the centre square; an image that fits is returned as it is.

    Bilinear with antialiasing, in Pillow's integer arithmetic: the same pixels on every machine.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
