"""Refuses the TIFFs that Pillow decodes wrongly, and those with damage that libtiff only warns of."""

from __future__ import annotations

import zlib

from PIL import ExifTags, Image

from tlray.images import jpeg
from tlray.images.bad_image import BadImage

_Tag = ExifTags.Base
_TILE_OFFSETS, _TILE_SIZES, _INK_SET = 324, 325, 332
_OLD_JPEG, _JPEG, _DEFLATE = 6, 7, {8, 32946}


def check(data: bytes, image: Image.Image) -> None:
    """Raise BadImage if the pixels of a TIFF that Pillow has opened would be wrong."""
    tags = getattr(image, "tag_v2", {})
    bits, samples = set(tags.get(_Tag.BitsPerSample, (1,))), tags.get(_Tag.SamplesPerPixel, 1)
    compression, colours = tags.get(_Tag.Compression, 1), tags.get(_Tag.PhotometricInterpretation)
    planes = tags.get(_Tag.PlanarConfiguration, 1) != 1 and not (
        colours in (1, 3) if samples == 1 else bits == {8} and image.mode in ("RGB", "RGBX", "RGBA", "CMYK")
    )
    signed = 2 in tags.get(_Tag.SampleFormat, ()) and min(bits) <= 8
    palette = image.mode == "P" and max(tags.get(_Tag.ColorMap, (256,))) < 256  # The format has 16 bits.
    if planes or signed or palette or tags.get(_INK_SET, 1) != 1 or compression == _OLD_JPEG:
        reason = "a kind of TIFF that Pillow decodes wrongly: save it as a plain RGB TIFF or PNG"
        raise BadImage("decode", "UnsupportedTiff", reason)
    offsets = tags.get(_Tag.StripOffsets) or tags.get(_TILE_OFFSETS) or ()
    sizes = tags.get(_Tag.StripByteCounts) or tags.get(_TILE_SIZES) or (len(data),) * len(offsets)
    for offset, size in zip(offsets, sizes, strict=True):
        part = data[offset : offset + size] if offset else b""
        if not part:
            raise BadImage("decode", "DamagedImage", "a strip or tile of the TIFF is missing")
        if compression == _JPEG:
            jpeg.check_part(tags.get(_Tag.JPEGTables, b""), part, samples, image.width * image.height)
        elif compression in _DEFLATE:
            # libtiff does not verify the checksum, at which this raises an exception.
            stream = zlib.decompressobj()
            while part and not stream.eof:
                stream.decompress(part, 1 << 24)
                part = stream.unconsumed_tail
            if not stream.eof:
                raise BadImage("decode", "DamagedImage", "a strip or tile of the TIFF is cut off")
