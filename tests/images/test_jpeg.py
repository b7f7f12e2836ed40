"""A JPEG is decoded exactly as Pillow decodes it, or refused because a part of it is missing or damaged."""

import io
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.support.bad_files import encode, lossless_jpeg
from tlray.images import jpeg
from tlray.images.bad_image import BadImage
from tlray.images.decoder import decode, open_image

DRAW = np.random.default_rng(0)
NOISE = Image.fromarray(DRAW.integers(0, 256, (20, 30, 3), np.uint8))
PICTURE = NOISE.resize((300, 200), Image.Resampling.BICUBIC)
OPTIONS = {
    "grey": {},
    "cmyk": {},
    "baseline": {"subsampling": 0},
    "optimised": {"optimize": True},
    "restart": {"restart_marker_rows": 2},
    "progressive": {"progressive": True},
    "rgb": {"keep_rgb": True},
    "halved": {"subsampling": 1, "quality": 95},
}
KINDS = {
    name: encode(PICTURE.convert({"grey": "L", "cmyk": "CMYK"}.get(name, "RGB")), "JPEG", **options)
    for name, options in OPTIONS.items()
}
KINDS["mpo"] = encode(PICTURE, "MPO", PICTURE.rotate(180))


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """The marker, start and end of each segment up to the end mark."""
    result, at = [], 2
    while data[at + 1] != 0xD9:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        result.append((marker, at, end))
        at = end
        while marker == 0xDA and (data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8))):
            at += 1
    return [*result, (0xD9, at, at + 2)]


def scan(data: bytes) -> tuple[int, int]:
    """Where the image data of the first scan begins, and where the image ends."""
    return next(end for marker, _, end in segments(data) if marker == 0xDA), segments(data)[-1][1]


def cut(fraction: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: (b := scan(data))[0] + int(fraction * (b[1] - b[0]))] + b"\xff\xd9"


def without_middle(data: bytes) -> bytes:
    start, end = scan(data)
    part = (end - start) // 4
    return data[: start + part] + data[start + 2 * part :]


def overwritten(fill: Callable[[int], bytes]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        start, end = scan(data)
        at, length = start + (end - start) // 3, (end - start) // 3
        return data[:at] + fill(length) + data[at + length :]

    return damage


DAMAGE = {
    **{f"cut at {fraction}": cut(fraction) for fraction in (0.3, 0.6, 0.9)},
    "middle": without_middle,
    "zeros": overwritten(bytes),
    "0x55": overwritten(lambda length: b"\x55" * length),
    "random": overwritten(lambda length: DRAW.bytes(length).replace(b"\xff", b"\xfe")),
}


def refused(data: bytes, error: str) -> None:
    for at_least in (0, 50):
        with pytest.raises(BadImage) as caught:
            open_image(data, at_least)
        assert (caught.value.stage, caught.value.error) == ("decode", error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_least", [0, 20, 40, 90])
def test_the_pixels_are_those_of_pillow(kind, at_least):
    image = Image.open(io.BytesIO(KINDS[kind]))
    if at_least:
        image.draft(None, (at_least, at_least))
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_image(KINDS[kind], at_least)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_missing_and_overwritten_image_data_are_refused(kind, damage):
    damaged = DAMAGE[damage](KINDS[kind])
    assert np.asarray(Image.open(io.BytesIO(damaged))).any(), "Pillow refuses it too"
    refused(damaged, "DamagedImage")


@pytest.mark.parametrize("kind", ["baseline", "optimised"])
def test_a_decoder_that_loses_its_place_and_ends_early_is_noticed(kind):
    """libjpeg only warns of stray bytes at the end of about a half of these."""
    for _ in range(15):
        refused(DAMAGE["random"](KINDS[kind]), "DamagedImage")


STRAY = {
    **{"zeros": bytes(200), "text": b"hello world\n" * 9, "escaped": b"\xff\0" * 9, "filling": b"\xff" * 9},
    "random": DRAW.bytes(200).replace(b"\xff", b"\xfe"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stray", STRAY)
def test_stray_bytes_between_segments_and_at_the_end_change_nothing(kind, stray):
    data, extra = KINDS[kind], STRAY[stray]
    ends = [start for marker, start, _ in segments(data)[1:]]
    for at in {ends[0], ends[-2], ends[-1]}:
        spoiled = data[:at] + extra + data[at:]
        for at_least in (0, 50):
            expected = np.asarray(open_image(data, at_least))
            np.testing.assert_array_equal(np.asarray(open_image(spoiled, at_least)), expected)


def test_bytes_after_the_end_mark_do_not_count():
    data = KINDS["baseline"]
    later = data + KINDS["progressive"][:5000] + b"\xff\xda" * 200
    np.testing.assert_array_equal(np.asarray(open_image(later)), np.asarray(open_image(data)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"JFIF\0\1", b"JFIF\0\2"),  # A revision that does not exist.
        (b"\x03\x11\0\x3f\0", b"\x03\x11\0\0\0"),  # Some cameras write a selection into a baseline scan.
    ],
)
def test_harmless_oddities_change_nothing(old, new):
    data = KINDS["baseline"]
    assert data.count(old) == 1
    np.testing.assert_array_equal(
        np.asarray(open_image(data.replace(old, new))), np.asarray(open_image(data))
    )


def test_missing_scans_are_refused():
    data = KINDS["progressive"]
    scans = [start for marker, start, _ in segments(data) if marker == 0xDA]
    for start in scans[1:]:
        refused(data[:start] + b"\xff\xd9", "DamagedImage")


def test_thousands_of_scans_are_refused_at_once():
    data = KINDS["progressive"]
    *_, (_, start, _), (_, end, _) = segments(data)
    many = data[:end] + data[start:end] * 40_000 + data[end:]
    before = time.process_time()
    refused(many, "TooManyScans")
    assert time.process_time() - before < 5
    refused(data[:end] + data[start:end] * 100 + data[end:], "TooManyScans")


@pytest.mark.parametrize("size", [8, 50, 150, 300])
def test_a_lossless_jpeg_is_decoded_at_every_size(size):
    grey = np.add.outer(np.arange(300) * 5, np.arange(400) * 3) % 256
    expected = np.asarray(Image.fromarray(grey.astype(np.uint8)).convert("RGB"))
    data = lossless_jpeg(grey)
    np.testing.assert_array_equal(np.asarray(open_image(data)), expected)
    whole = Image.fromarray(expected).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(data, size), np.asarray(whole))


def test_a_kind_that_cannot_be_checked_is_refused():
    refused(KINDS["baseline"].replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"), "UnsupportedJpeg")
    usual, unusual = b"\x03\x01\x11\0\x02\x11\x01", b"\x03\x01\x31\0\x02\x11\x01"
    assert usual in KINDS["baseline"]
    refused(KINDS["baseline"].replace(usual, unusual), "UnsupportedJpeg")


def test_the_sampling_of_a_grey_jpeg_means_nothing():
    usual, other = b"\x01\x01\x11\0\xff", b"\x01\x01\x22\0\xff"
    data = KINDS["grey"].replace(usual, other)
    assert data != KINDS["grey"]
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(open_image(KINDS["grey"])))


def test_a_size_that_only_libjpeg_sees_is_refused():
    data, (marker, start, end) = KINDS["baseline"], segments(KINDS["baseline"])[3]
    assert marker == 0xC0
    bomb = struct.pack(">BHH", 8, 60_000, 60_000)
    frame = data[start : start + 4] + bomb + data[start + 9 : end]
    with pytest.raises(BadImage):
        open_image(data[:start] + frame + data[start:])


def test_the_limit_of_scans_leaves_room_for_every_usual_jpeg():
    scans = sum(marker == 0xDA for marker, _, _ in segments(KINDS["progressive"]))
    assert 5 * scans < jpeg.MAX_SCANS
