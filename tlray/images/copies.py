"""Copies of an image for people to look at: a thumbnail, or one with a caption."""

from __future__ import annotations

import io

from PIL import ImageDraw, ImageFont

from tlray.images.decoder import open_image


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of an image, at most `side` pixels wide and high.

    Raises:
        BadImage: the bytes are not an image, or not a complete one.
    """
    image = open_image(data)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def captioned(data: bytes, text: str, kind: str, max_pixels: int) -> bytes:
    """A copy of an image in full size, with a caption in its upper left corner.

    Args:
        data: the bytes of the image file.
        text: the caption.
        kind: the format of the returned file, "JPEG" or "PNG".
        max_pixels: the most pixels (width times height) that the image may have.

    Raises:
        BadImage: the bytes are not an image, or not a complete one, or it is too large.
    """
    image = open_image(data, max_pixels=max_pixels)
    size = max(12, min(image.size) // 14)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    _, _, right, bottom = draw.textbbox((size // 2, size // 3), text, font=font)
    draw.rectangle((0, 0, right + size // 2, bottom + size // 3), fill=(0, 0, 0))
    draw.text((size // 2, size // 3), text, fill=(255, 255, 255), font=font)
    stream = io.BytesIO()
    image.save(stream, kind, quality=90)
    return stream.getvalue()
