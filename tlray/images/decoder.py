"""Decodes one image file to RGB pixels of a fixed size, or says why that is impossible.

docs/images.md says what happens to each kind of file.

Only one thread of a process may decode, because some of Pillow's switches are global.
"""

from __future__ import annotations

import functools
import io
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tlray.core.config import MAX_PIXELS
from tlray.images import filetypes, formats, jpeg, tiff
from tlray.images.bad_image import BadImage, refusing

_SCALED = 2
"""A JPEG is decoded at a reduced size that leaves at least this many times the needed width and height. That
takes a sixth of the time for 12 million pixels. The features then differ by 0.4 %, which is as much as
bfloat16 changes them; with 1 they would differ by 5 %."""

# MPO has no decoder of its own in Pillow; the one for JPEG recognises it.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image upright, by its EXIF orientation."""


def open_image(data: bytes, at_least: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The complete image as 8-bit RGB, upright, in memory.

    Args:
        data: the bytes of the image file.
        at_least: the pixels that are needed on each side. A larger JPEG is decoded at a half, a quarter or an
            eighth of its size if that leaves as many. With 0 every image is decoded at full size.
        max_pixels: the most pixels (width times height, read from the header) that the image may have.

    Raises:
        BadImage: the bytes are not an image, or not a complete one, or it is too large.
    """
    if not data:
        raise BadImage("decode", "EmptyFile", "the file has no bytes")
    with refusing("decode"), _pillow_switches(max_pixels) as caught:
        try:
            image = Image.open(io.BytesIO(data), formats=_formats())
            if preview := formats.describe_preview(image, data):
                raise BadImage("decode", "NotAnImage", preview)
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.size} is above {max_pixels} pixels")
            if image.format == "PNG":
                # Pillow stops reading at the last pixel, before the last checksum.
                Image.open(io.BytesIO(data), formats=("PNG",)).verify()
            if image.format == "TIFF":
                tiff.check(data, image)
            pixels = jpeg.decode(data, image, at_least) if image.format in ("JPEG", "MPO") else image
            pixels.load()
        except Image.DecompressionBombError as error:
            raise BadImage("decode", "DecompressionBomb", str(error)) from error
        except UnidentifiedImageError as error:
            if name := formats.describe(data):
                raise BadImage("decode", "NotAnImage", name) from error
            reasons = "; ".join({str(warning.message): None for warning in caught})
            start = f"none of {', '.join(_formats())}: begins with {data[:16]!r}"
            raise BadImage("decode", "BrokenHeader" if caught else "NotAnImage", reasons or start) from error
        turn = None
        with suppress(Exception):
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        upright = _rgb(pixels) if turn is None else _rgb(pixels).transpose(turn)
    # The EXIF data still has the orientation, which would turn a saved copy a second time.
    upright.info = {}
    return upright


def decode(data: bytes, image_size: int, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels, (image_size, image_size, 3), whatever the aspect ratio; raises what `open_image` raises."""
    image = open_image(data, _SCALED * image_size, max_pixels)
    with refusing("decode"):
        return np.array(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def decode_timed(data: bytes, image_size: int, max_pixels: int) -> tuple[npt.NDArray[np.uint8], float]:
    """What `decode` returns, and the seconds it took in this process."""
    started = time.perf_counter()
    return decode(data, image_size, max_pixels), time.perf_counter() - started


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats of Pillow that are tried."""
    if not filetypes.reads_heic():
        return _FORMATS
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return (*_FORMATS, "HEIF")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise BadImage("decode", "UnsupportedMode", "floating-point pixels: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    wide = image.convert("I")
    low, high = cast("tuple[int, int]", wide.getextrema())
    if low < 0 or high > 65535:
        message = f"grey values from {low} to {high}; expected 0 to 65535: convert it to 8 or 16 bits"
        raise BadImage("decode", "UnsupportedMode", message)
    tags = getattr(image, "tag_v2", {})
    scale, offset = 255 / (4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535), 0.5
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # White is zero.
        scale, offset = -scale, 255.5
    grey = wide.point(lambda value: value * scale + offset).convert("L")
    if "transparency" in image.info:
        grey.paste(255, mask=Image.fromarray(np.asarray(wide) == image.info["transparency"]))
    return grey


@contextmanager
def _pillow_switches(max_pixels: int) -> Iterator[list[warnings.WarningMessage]]:
    """Set Pillow's global switches in the block, and yield the list of the warnings caught in it."""
    before = Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Pillow raises above twice its limit; in some formats that is before `open_image` sees the size.
            Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
            Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = True, False
            yield caught
    finally:
        Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = before
