"""One image file -> RGB pixels of one size, or the reason why not.

What becomes of each kind of file:

=====================  ==========================================================================
wrong extension        the content decides: a PNG named .jpg is a PNG
JPEG, MPO, PNG, GIF,   accepted. Nothing else is even tried (EPS would run a program): SVG, PDF,
WebP, BMP, TIFF, AVIF, HEIC, ... are refused as `NotAnImage`
PPM (PBM, PGM)
EXIF or XMP            orientation is applied; a broken block is ignored; colour profiles are not used
several frames, pages  the first one (of an APNG its default image)
grey, 1 bit, palette,  to RGB by Pillow
CMYK, YCbCr, LAB
transparency           alpha, tRNS, GIF: composited over white
16-bit grey            v * 255 / 65535, rounded, not clipped (12 bits: / 4095); white-is-zero inverted
16-bit colour          its high byte, by Pillow, without tRNS (also unused in grey of 2 and 4 bits)
32-bit, signed grey    as 16-bit grey if all values are within 0..65535, else `UnsupportedMode`
floating point         refused as `UnsupportedMode`
over `max_pixels`      refused as `DecompressionBomb`, from the header; over `MAX_BYTES`: `FileTooLarge`
empty, cut, corrupt    refused, never padded. What a format has no checksum for (a flipped bit in a
                       JPEG) cannot be seen; what is missing after the first frame is not missed,
                       but in a PNG all checksums are verified
folder, pipe, device   refused as `NotAFile`, without being opened
=====================  ==========================================================================

Not for several threads of one process: some of Pillow's switches are global.
"""

from __future__ import annotations

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
from tlray.images.bad_image import BadImage, refusing

_SCALED = 2
"""A JPEG is decoded scaled down if that leaves so many times the pixels that are needed, one of 12 million
pixels in a sixth of the time. Features then differ by 0.4 %, as in bfloat16; with 1 they would by 5 %."""

# MPO has no opener of its own in Pillow: JPEG's recognises it.
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


def open_image(data: bytes, at_least: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as 8-bit RGB, upright, in memory.

    Args:
        data: of the file.
        at_least: the pixels that are needed of each side; a larger JPEG is decoded at a half, a quarter or
            an eighth of its size if that leaves as many. 0: all.
        max_pixels: width times height above which it is refused, by its header.

    Raises:
        BadImage: these bytes are not an image, or not a whole one.
    """
    if not data:
        raise BadImage("decode", "EmptyFile", "the file has no bytes")
    with refusing("decode"), _own_pillow_settings(max_pixels) as heard:
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.size} is above {max_pixels} pixels")
            if image.format == "PNG":
                # Pillow stops at the last pixel, before the checksum that would tell a wrong one.
                Image.open(io.BytesIO(data), formats=("PNG",)).verify()
            if at_least:
                image.draft(None, (at_least, at_least))
            image.load()
        except Image.DecompressionBombError as error:
            raise BadImage("decode", "DecompressionBomb", str(error)) from error
        except UnidentifiedImageError as error:
            reasons = "; ".join({str(warning.message): None for warning in heard})
            start = f"none of {', '.join(_FORMATS)}: begins with {data[:16]!r}"
            raise BadImage("decode", "BrokenHeader" if heard else "NotAnImage", reasons or start) from error
        turn = None
        with suppress(Exception):
            turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        upright = _rgb(image) if turn is None else _rgb(image).transpose(turn)
    # The orientation in it would turn the picture a second time.
    upright.info = {}
    return upright


def decode(data: bytes, image_size: int, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of one image, shape (image_size, image_size, 3); the aspect ratio is not kept.

    Raises:
        BadImage: as `open_image`.
    """
    image = open_image(data, _SCALED * image_size, max_pixels)
    with refusing("decode"):
        return np.array(image.resize((image_size, image_size), Image.Resampling.BILINEAR))


def decode_timed(
    data: bytes, image_size: int, max_pixels: int
) -> tuple[npt.NDArray[np.uint8] | BadImage, float]:
    """What `decode` returns or raises, and the seconds that it took in this process."""
    started = time.perf_counter()
    try:
        outcome: npt.NDArray[np.uint8] | BadImage = decode(data, image_size, max_pixels)
    except BadImage as bad:
        outcome = bad
    return outcome, time.perf_counter() - started


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise BadImage("decode", "UnsupportedMode", "floating-point pixels: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    wide = image.convert("I")
    low, high = cast("tuple[int, int]", wide.getextrema())
    if low < 0 or high > 65535:
        message = f"grey values from {low} to {high}, not 0 to 65535: convert it to 8 or 16 bits"
        raise BadImage("decode", "UnsupportedMode", message)
    tags = getattr(image, "tag_v2", {})
    scale = 255 / (4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = wide.point(lambda value: value * -scale + 255.5).convert("L")
    else:
        grey = wide.point(lambda value: value * scale + 0.5).convert("L")
    if "transparency" in image.info:
        grey.paste(255, mask=Image.fromarray(np.asarray(wide) == image.info["transparency"]))
    return grey


@contextmanager
def _own_pillow_settings(max_pixels: int) -> Iterator[list[warnings.WarningMessage]]:
    """Pillow's global switches as needed here, whatever others have set; gives the warnings caught."""
    before = Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            # Pillow raises above twice its limit, in some formats before the size is seen here.
            Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
            Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = True, False
            yield heard
    finally:
        Image.MAX_IMAGE_PIXELS, Image.WARN_POSSIBLE_FORMATS, ImageFile.LOAD_TRUNCATED_IMAGES = before
