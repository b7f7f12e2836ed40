"""Copies of a picture for people to look at: a small one, or one with a text on it."""

from __future__ import annotations

import io

from PIL import ImageDraw, ImageFont

from tlray.images.decoder import open_image


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of a picture with at most `side` pixels a side.

    Raises:
        BadImage: these bytes are not an image, or not a whole one.
    """
    image = open_image(data)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def captioned(data: bytes, text: str, kind: str, max_pixels: int) -> bytes:
    """A picture of full size with a text in its upper left corner.

    Args:
        data: of the file of the picture.
        text: to write on it.
        kind: of the file that is returned, "JPEG" or "PNG".
        max_pixels: a picture of more is refused.

    Raises:
        BadImage: these bytes are not an image, or not a whole one.
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
