"""Kinds of TIFF that Pillow would decode wrongly: the right pixels, or a refusal."""

import io
import struct
import zlib
from itertools import product

import numpy as np
import pytest
from PIL import Image

from tests.support.bad_files import encode, photo
from tlray.images.bad_image import BadImage
from tlray.images.decoder import open_image

HEIGHT, WIDTH = 48, 64
CODES = {"H": 3, "I": 4}
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
BANDS = np.stack([X / 63, Y / 47, (X + Y) / 110, 1 - X / 126], -1)
"""Four channels from 0 to 1, of which no two are alike."""
COLOURS = {
    "white is zero": (0, 1),
    "grey": (1, 1),
    "rgb": (2, 3),
    "rgba": (2, 4),
    "cmyk": (5, 4),
    "lab": (8, 3),
}
"""The photometric interpretation, and the number of channels."""


def tiff(values: np.ndarray, photometric: int, planar: int, packed: bool = False, **more: int) -> bytes:
    """A TIFF of unsigned integers (height, width, channels) in strips of 20 rows."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    planes = [values[..., k : k + 1] for k in range(values.shape[-1])] if planar == 2 else [values]
    strips = [plane[row : row + 20].tobytes() for plane in planes for row in range(0, HEIGHT, 20)]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    sizes = [len(strip) for strip in strips]
    samples = values.shape[-1]
    tags = {
        **{256: ("I", [WIDTH]), 257: ("I", [HEIGHT]), 258: ("H", [8 * values.itemsize] * samples)},
        **{259: ("H", [8 if packed else 1]), 262: ("H", [photometric])},
        273: ("I", [8 + sum(sizes[:n]) for n in range(len(sizes))]),
        **{277: ("H", [samples]), 278: ("I", [20]), 279: ("I", sizes), 284: ("H", [planar])},
        **({338: ("H", [2])} if photometric == 2 and samples == 4 else {}),
        **{int(tag.strip("_")): ("H", [value]) for tag, value in more.items()},
    }
    body = b"".join(strips)
    at, entries, beyond = 8 + len(body) + 6 + 12 * len(tags), b"", b""
    for tag, (code, numbers) in sorted(tags.items()):
        field = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(field) > 4:
            beyond, field = beyond + field, struct.pack(f"{order}I", at + len(beyond))
        entries += struct.pack(f"{order}HHI", tag, CODES[code], len(numbers)) + field.ljust(4, b"\0")
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond


def right(values: np.ndarray, colours: str) -> np.ndarray:
    """What the pixels are, from 0 to 255."""
    values = 255 * values
    match colours:
        case "white is zero":
            return (255 - values).repeat(3, -1)
        case "grey":
            return values.repeat(3, -1)
        case "rgba":
            return values[..., :3] * values[..., 3:] / 255 + 255 - values[..., 3:]
        case "cmyk":
            return (255 - values[..., :3]) * (255 - values[..., 3:]) / 255
    return values[..., :3]


SURE = {("grey", 1, "<u1"), ("grey", 1, "<u2"), ("grey", 2, "<u1"), ("rgb", 1, "<u1"), ("rgb", 1, "<u2")}
SURE |= {("rgb", 1, ">u2"), ("rgb", 2, "<u1"), ("rgba", 1, "<u2"), ("cmyk", 1, "<u2"), ("cmyk", 2, ">u1")}
"""Kinds that must not be refused."""


@pytest.mark.parametrize(("colours", "planar"), product(COLOURS, (1, 2)))
@pytest.mark.parametrize("dtype", ["<u1", ">u1", "<u2", ">u2"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_pixels_are_right_or_refused(colours, planar, dtype, packed):
    photometric, samples = COLOURS[colours]
    bands = BANDS[..., :samples]
    values = np.round(bands * np.iinfo(dtype).max).astype(dtype)
    try:
        pixels = np.asarray(open_image(tiff(values, photometric, planar, packed))).astype(float)
    except BadImage:
        assert (colours, planar, dtype) not in SURE
        return
    if colours == "lab":
        assert planar == 1  # Pillow writes this kind itself, and `test_decoder` compares its colours.
    else:
        assert np.abs(pixels - right(bands, colours)).max() < 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"_339": 2}, "UnsupportedTiff"),
        ({"_332": 2}, "UnsupportedTiff"),
        ({"_259": 6}, "UnsupportedTiff"),
        ({"_273": 0, "_279": 20}, "missing"),
        ({"_273": 65000, "_279": 20}, "missing"),
    ],
)
def test_what_pillow_takes_for_something_else_is_refused(more, words):
    values = np.round(BANDS[..., :1] * 255).astype("u1")
    with pytest.raises(BadImage, match=words):
        open_image(tiff(values, 1, 1, **more))


def test_a_palette_of_8_bits_is_refused():
    palette = encode(photo().quantize(16), "TIFF")
    at = palette.index(struct.pack("<HH", 320, 3))
    count, start = struct.unpack("<II", palette[at + 4 : at + 12])
    colours = np.frombuffer(palette[start : start + 2 * count], "<u2") >> 8
    assert open_image(palette).size == (60, 40)
    with pytest.raises(BadImage, match="UnsupportedTiff"):
        open_image(palette[:start] + colours.astype("<u2").tobytes() + palette[start + 2 * count :])


@pytest.mark.parametrize("compression", ["jpeg", "tiff_adobe_deflate", "tiff_lzw"])
def test_damage_to_compressed_strips_is_refused(compression):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 240, 3), np.uint8))
    whole = encode(noise, "TIFF", compression=compression)
    assert open_image(whole).size == noise.size
    tags = Image.open(io.BytesIO(whole)).tag_v2
    middle = tags[273][0] + tags[279][0] // 2
    with pytest.raises(BadImage):
        open_image(whole[:middle] + bytes(400) + whole[middle + 400 :])
