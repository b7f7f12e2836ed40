"""Decodes JPEGs in libjpeg's strict mode, because Pillow fills in image data that is missing.

The pixels are those of Pillow, for every kind of JPEG. In strict mode libjpeg stops at its first warning, and
some warnings mean no damage: then `_harmless` makes a copy without their causes, and libjpeg judges that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import simplejpeg
from PIL import Image

from tlray.images.bad_image import BadImage

MAX_SCANS = 100
"""A progressive JPEG has about ten scans. Each takes time for all blocks of the image, even if short."""

_COLOUR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_START, _END = b"\xff\xd8", b"\xff\xd9"
_TABLES, _SCAN, _LAST = 0xC4, 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {_TABLES, 0xC8, 0xCC}
_BASELINE, _PROGRESSIVE, _LOSSLESS, _ARITHMETIC = {0xC0, 0xC1}, 0xC2, 0xC3, 0xC9
_METADATA = {*range(0xE0, 0xEE), 0xEF, 0xFE}
"""Metadata that change no pixel; 0xEE is Adobe's, which names the colours."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_TILE = 1 << 22
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_FILLED = re.compile(rb"(.)\1{63}", re.DOTALL)


class _Segment(NamedTuple):
    """A marker and what belongs to it; after the segment of a scan, image data follows."""

    marker: int
    start: int
    end: int


def decode(data: bytes, image: Image.Image, at_least: int) -> Image.Image:
    """The pixels of a JPEG that Pillow has opened, in the same mode and not turned upright.

    Args:
        data: the bytes of the file.
        image: what Pillow has opened. Its size becomes the size that is decoded.
        at_least: the pixels that are needed on each side; 0 for all.

    Raises:
        BadImage: image data is missing or corrupt.
    """
    segments = list(_segments(data))
    frame, at = next(((marker, start) for marker, start, _ in segments if marker in _FRAMES), (0, 0))
    _check_scans(data, segments, frame, at)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        if frame >= _ARITHMETIC:
            raise ValueError("arithmetic coding, in which missing data go unnoticed")
    except ValueError as error:
        raise BadImage("decode", "UnsupportedJpeg", f"{error}: save it as a usual JPEG") from error
    if (width, height) != image.size:
        raise BadImage("decode", "BrokenHeader", "the JPEG states two different sizes")
    options: dict[str, Any] = {"colorspace": _COLOUR_SPACES[image.mode]}
    if at_least and frame != _LOSSLESS:  # libjpeg cannot scale a lossless JPEG, and simplejpeg crashes.
        image.draft(None, (at_least, at_least))
        options |= {"min_width": image.width, "min_height": image.height}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError:
        pixels = simplejpeg.decode_jpeg(_harmless(data, segments, frame, at, image.mode), **options)
    if image.mode == "CMYK":
        pixels = 255 - pixels  # In a JPEG, 255 stands for no ink.
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels, image.mode)


def check_part(tables: bytes, part: bytes, samples: int, pixels: int) -> None:
    """Raise BadImage if a strip or tile of a TIFF is damaged, or larger than the image and any usual tile."""
    data = tables[: -len(_END)] + part[len(_START) :] if tables else part
    height, width = simplejpeg.decode_jpeg_header(data, strict=False)[:2]
    warning = "larger than the image" if height * width > max(pixels, _TILE) else ""
    if warning := warning or _warning(data, {1: "L", 4: "CMYK"}.get(samples, "RGB")):
        raise BadImage("decode", "DamagedImage", f"a strip or tile: {warning}")


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments up to the end mark, found as libjpeg finds them; bytes between segments are ignored."""
    position = len(_START)
    while match := _MARKER.search(data, position):
        marker, start, position = match[1][0], match.start(), match.end()
        if marker != _LAST:
            position += int.from_bytes(data[position : position + 2], "big")
        yield _Segment(marker, start, position)
        if marker == _LAST:
            return


def _check_scans(data: bytes, segments: list[_Segment], frame: int, at: int) -> None:
    """Raise BadImage if scans are missing, of which libjpeg does not warn, or if there are too many."""
    scans = [start for marker, start, _ in segments if marker == _SCAN]
    if not frame:
        raise BadImage("decode", "BrokenHeader", "the JPEG has no frame")
    if len(scans) > MAX_SCANS:
        raise BadImage("decode", "TooManyScans", f"{len(scans)} scans; a JPEG may have {MAX_SCANS}")
    coefficients = range(64 if frame == _PROGRESSIVE else 1)
    missing = {(name, k) for name in data[at + 10 :][: 3 * data[at + 9] : 3] for k in coefficients}
    for start in scans:
        names = data[start + 5 :][: 2 * data[start + 4] : 2]
        first, last, bits = data[start + 5 + 2 * len(names) :][:3]
        if frame != _PROGRESSIVE:
            missing -= {(name, 0) for name in names}
        elif bits % 16 == 0:  # The scan has the last bit of its coefficients.
            missing -= {(name, k) for name in names for k in range(first, last + 1)}
    if missing:
        raise BadImage("decode", "DamagedImage", "the last scans of the JPEG are missing")


def _harmless(data: bytes, segments: list[_Segment], frame: int, at: int, mode: str) -> bytes:
    """A copy without metadata and without stray bytes; raises BadImage if libjpeg warns of that, too."""
    copy, reason = _START, ""
    for (marker, start, end), following in pairwise(segments):
        segment = data[start:end]
        if marker == _SCAN:
            if frame in _BASELINE:
                segment = segment[:-3] + b"\0\x3f\0"  # Some cameras write other numbers, which mean nothing.
            scan, stray = data[end : following.start], False
            while match := _STRAY.search(reason := _warning(copy + segment + scan + _END, mode)):
                scan, stray = scan[: -int(match[1])].rstrip(b"\xff"), True
            # A decoder that has lost its place may also be done with all blocks before the scan ends.
            if stray and (
                _FILLED.search(scan) or (frame in _BASELINE and not _fits(data, segments, at, start, scan))
            ):
                reason = "Corrupt JPEG data: extraneous bytes after damage"
            if reason:
                break
            segment += scan
        if marker not in _METADATA:
            copy += segment
    if reason or segments[-1].marker != _LAST:
        raise BadImage("decode", "DamagedImage", reason or "the JPEG has no end mark")
    return copy + _END


def _warning(data: bytes, mode: str) -> str:
    """The first warning of libjpeg, or an empty string."""
    try:
        simplejpeg.decode_jpeg(data, _COLOUR_SPACES[mode])
    except ValueError as error:
        return str(error)
    return ""


def _fits(data: bytes, segments: list[_Segment], at: int, start: int, scan: bytes) -> bool:
    """Whether no block of a baseline scan has more than 64 coefficients, of which libjpeg does not warn.

    Decoding from a wrong place soon leads to such a block, or to a code that does not exist.
    """
    tables: dict[int, list[tuple[int, int]]] = {}
    for marker, header, end in segments:
        position = header + 4
        while marker == _TABLES and position < min(end, start):
            name, lengths = data[position], data[position + 1 : position + 17]
            symbols = iter(data[position + 17 : (position := position + 17 + sum(lengths))])
            codes = [(length, next(symbols)) for length, count in enumerate(lengths, 1) for _ in range(count)]
            # The entry at each 16-bit number is the code with which it begins.
            tables[name] = [code for code in codes for _ in range(1 << 16 - code[0])]
    sampling = {data[n]: data[n + 1] for n in range(at + 10, at + 10 + 3 * data[at + 9], 3)}
    blocks = []
    for n in range(start + 5, start + 5 + 2 * data[start + 4], 2):
        count = math.prod(divmod(sampling[data[n]], 16)) if data[start + 4] > 1 else 1
        blocks += [(tables[data[n + 1] >> 4], tables[16 + data[n + 1] % 16])] * count
    for part in re.split(rb"\xff[\xd0-\xd7]", scan):
        bits, position = part.replace(b"\xff\0", b"\xff"), 0
        for first, others in cycle(blocks):
            if position >= 8 * (len(bits) - 8):  # libjpeg does not count stray bytes that it has read ahead.
                break
            k = 0
            while k < 64:
                window = int.from_bytes(bits[position >> 3 : (position >> 3) + 3], "big") >> 8 - position % 8
                table = others if k else first
                if window & 0xFFFF >= len(table):
                    return False
                length, symbol = table[window & 0xFFFF]
                position += length + symbol % 16
                if k and symbol == 0:
                    break
                k += 1 + symbol // 16 if k else 1
            if k > 64:
                return False
    return True
