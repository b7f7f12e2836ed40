"""Every odd file is decided on purpose, and no file brings the job down."""

import atexit
import io
import os
import pickle
import re
import resource
import signal
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.support.bad_files import encode, flip, photo, png, png_chunk, tiff, with_exif, write_bad_files
from tlray.core import checked_file
from tlray.core.storage import Folder
from tlray.images.bad_image import MAX_BYTES, BadImage
from tlray.images.decoder import decode, open_image
from tlray.images.reader import read_image

HOLDER = tempfile.TemporaryDirectory(prefix="tlray-bad-files-")
atexit.register(HOLDER.cleanup)
FOLDER = Path(HOLDER.name)
OUTCOMES = write_bad_files(FOLDER)
ROOT = Folder.open(HOLDER.name)
BOMBS = sorted(name for name in OUTCOMES if name.startswith("bomb"))
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}, "PPM": {}}
REASONS = {
    **{"empty.jpg": "EmptyFile", "wrong_header.png": "BrokenHeader"},
    **dict.fromkeys(["page.png", "eps.jpg", "pdf.jpg", "drawing.png"], "NotAnImage"),
    **dict.fromkeys(["half.jpg", "input_output_error.jpg"], "OSError"),
    **dict.fromkeys(["last_byte_missing.jpg", "half_progressive.jpg"], "DamagedImage"),
    "wrong_checksum.png": "SyntaxError",
    **dict.fromkeys(["float.tif", "grey_32_bit.tif", "signed.tif"], "UnsupportedMode"),
    **dict.fromkeys(["pipe.jpg", "socket.jpg", "device.jpg"], "NotAFile"),
    **dict.fromkeys(BOMBS, "DecompressionBomb"),
}
"""For some of the bad files, the name of the error."""
assert REASONS.keys() <= OUTCOMES.keys()


def outcome(name: str) -> np.ndarray | BadImage:
    """The pixels of a file, or what is wrong with it."""
    try:
        return decode(read_image(ROOT, name), 8)
    except BadImage as bad:
        return bad


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


def refused(data: bytes) -> BadImage:
    with pytest.raises(BadImage) as caught:
        open_image(data)
    assert caught.value.stage == "decode"
    return caught.value


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    colour, alpha = colour.astype(float), alpha.astype(float)[..., None]
    return np.floor((colour * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


@pytest.fixture
def alarm() -> Iterator[None]:
    """Waiting for ever becomes an exception that the test can see."""

    def ring(*_: object) -> None:
        raise TimeoutError("waited")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(megabytes: int = 64) -> Iterator[None]:
    """Nothing may take much more memory than the process has already."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Every file.


@pytest.mark.parametrize(("name", "expected"), OUTCOMES.items())
def test_each_file_has_its_outcome(
    name: str, expected: str, alarm: None, recwarn: pytest.WarningsRecorder
) -> None:
    result = outcome(name)
    assert not recwarn.list
    if isinstance(result, BadImage):
        assert (result.stage, result.error) == (expected, REASONS.get(name, result.error)), result
        assert result.error.isidentifier()
        assert result.message
        assert result.message.isprintable()
        assert len(result.message) <= 500
        assert "0x" not in result.message
        assert HOLDER.name not in result.message
    else:
        assert expected == "ok"
        assert (result.shape, result.dtype) == ((8, 8, 3), np.uint8)


# Reading.


def test_why_a_file_is_missing(tmp_path: Path) -> None:
    root = Folder.open(str(tmp_path))
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "file").touch()
    for path, words in [
        ("link.jpg", "a link to nowhere"),
        ("gone.jpg", "removed since it was listed"),
        ("folder/gone.jpg", "removed since it was listed"),
        ("caf\\xe9.jpg", "its name is not UTF-8: rename it"),
        ("caf\ufffd.jpg", "its name is not UTF-8: rename it"),
        ("caf\ud800.jpg", "its name is not UTF-8: rename it"),
        ("file/gone.jpg", "Not a directory"),
        ("nul\0.jpg", "embedded null"),
    ]:
        with pytest.raises(BadImage, match=re.escape(words)) as caught:
            read_image(root, path)
        assert caught.value.stage == "read"
        assert str(tmp_path) not in caught.value.message


def test_a_name_that_only_looks_as_if_it_were_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "caf\\xe9.jpg").write_bytes(b"bytes")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"other")
    root = Folder.open(str(tmp_path))
    assert read_image(root, "caf\\xe9.jpg") == b"bytes"
    assert read_image(root, os.fsdecode(b"caf\xe9.jpg")) == b"other"


def test_a_file_that_became_a_pipe_is_not_waited_for(
    tmp_path: Path, alarm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "image.jpg")
    root = Folder.open(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(checked_file.os, "stat", lambda _: os.lstat(FOLDER / "plain.jpg"))
        with pytest.raises(BadImage, match="Illegal seek"):
            read_image(root, "image.jpg")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with little_memory(), pytest.raises(BadImage) as caught:
        read_image(Folder.open(str(tmp_path)), "huge.jpg")
    assert (caught.value.stage, caught.value.error) == ("read", "FileTooLarge")


def test_images_are_read_from_other_storage_and_from_outside_the_folder(tmp_path: Path) -> None:
    local, remote = Folder.open(str(tmp_path)), Folder.open("memory://images")
    remote.write("sub/a.png", b"bytes")
    for root, folder in ((remote, "sub"), (local, "memory://images/sub")):
        assert read_image(root, f"{folder}/a.png") == b"bytes"
        with pytest.raises(BadImage, match="removed since it was listed"):
            read_image(root, f"{folder}/b.png")
    assert read_image(local, str(FOLDER / "plain.jpg")) == (FOLDER / "plain.jpg").read_bytes()


def test_no_file_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert len(list(map(outcome, OUTCOMES))) > 90
    assert len(os.listdir("/proc/self/fd")) <= before


# What the pixels are.


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome == "ok"])
@pytest.mark.parametrize("size", [1, 8, 150])
def test_decode_is_a_bilinear_resize_of_twice_as_many_pixels_or_all(name: str, size: int) -> None:
    data = read_image(ROOT, name)
    whole = open_image(data, 2 * size)
    assert whole.mode == "RGB"
    expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))
    small = decode(data, size)
    np.testing.assert_array_equal(small, expected)
    assert small.flags.writeable


@pytest.mark.parametrize("kind", LOSSLESS)
def test_rgb_is_kept_as_it_is(kind: str) -> None:
    np.testing.assert_array_equal(pixels(encode(photo(), kind, **LOSSLESS[kind])), np.asarray(photo()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb_as_in_pillow(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    data = encode(photo(mode), kind)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_alpha_is_composited_over_white() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = colour[..., 0]
    for kind in ("PNG", "TIFF"):
        rgba = encode(Image.fromarray(np.dstack([colour, alpha])), kind)
        np.testing.assert_array_equal(pixels(rgba), over_white(colour, alpha))
        grey_alpha = encode(Image.fromarray(np.dstack([grey, alpha]), "LA"), kind)
        np.testing.assert_array_equal(pixels(grey_alpha), over_white(np.dstack([grey] * 3), alpha))


def test_palette_transparency_is_composited_over_white() -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 100, 0, 0, 0, 50])
    colour = np.array([[[0, 0, 0], [200, 0, 0], [0, 100, 0], [0, 0, 50]]])
    several = encode(image, "PNG", transparency=bytes([0, 100, 200, 255]))
    np.testing.assert_array_equal(pixels(several), over_white(colour, np.array([[0, 100, 200, 255]])))
    for kind in ("PNG", "GIF"):
        single = encode(image, kind, transparency=1)
        np.testing.assert_array_equal(pixels(single), over_white(colour, np.array([[255, 0, 255, 255]])))


def test_a_transparent_colour_becomes_white() -> None:
    rgb = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert pixels(rgb).tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = png(2, 1, 8, 0, b"\0\x40\x50", png_chunk(b"tRNS", struct.pack(">H", 0x40)))
    assert pixels(grey).tolist() == [[[255] * 3, [0x50] * 3]]
    bit = png(2, 1, 1, 0, b"\0\x40", png_chunk(b"tRNS", struct.pack(">H", 0)))
    assert pixels(bit).tolist() == [[[255] * 3, [255] * 3]]
    grey_16 = png(
        2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 2000), png_chunk(b"tRNS", struct.pack(">H", 1000))
    )
    assert pixels(grey_16).tolist() == [[[255] * 3, [8] * 3]]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4"), ("PPM", "<u2")]
)
def test_16_bit_grey_is_scaled_not_clipped(kind: str, dtype: str) -> None:
    wide = np.arange(65536).reshape(256, 256)
    got = pixels(encode(Image.fromarray(wide.astype(dtype)), kind))
    np.testing.assert_array_equal(got, np.round(wide / 257).astype(np.uint8)[..., None].repeat(3, -1))


def test_16_bit_grey_with_zero_as_white_is_inverted() -> None:
    wide = np.arange(65536).reshape(256, 256)
    data = tiff(wide.astype("<u2").tobytes(), 256, 256, 16, photometric=0)
    np.testing.assert_array_equal(pixels(data)[..., 0], np.round((65535 - wide) / 257))


def test_12_bit_grey_uses_the_whole_range() -> None:
    data = tiff(bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x10]), 4, 1, 12, photometric=1)
    assert pixels(data)[0, :, 0].tolist() == [255, 0, 128, 1]


def test_16_bit_colour_is_its_high_byte() -> None:
    data = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x1234, 0xFFFF, 0x80FF))
    assert pixels(data).tolist() == [[[0x12, 0xFF, 0x80]]]


@pytest.mark.parametrize("values", [(0, 65536), (-1, 5)])
def test_32_bit_grey_out_of_range_is_refused(values: tuple[int, int]) -> None:
    bad = refused(encode(Image.fromarray(np.array([values], np.int32)), "TIFF"))
    assert bad.error == "UnsupportedMode"
    assert "convert it" in bad.message


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_is_the_image(kind: str) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = encode(red, kind, blue)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() < 6


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "RGB") for kind in ("PNG", "WEBP", "TIFF")), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "CMYK")],
)
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once(kind: str, mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = LOSSLESS.get(kind, {})
    expected = TURNED[orientation](pixels(encode(photo(mode), kind, **options)))
    upright = open_image(encode(photo(mode), kind, exif=exif, **options))
    np.testing.assert_array_equal(np.asarray(upright), expected)
    np.testing.assert_array_equal(pixels(encode(upright, "PNG")), expected)


def test_a_broken_exif_block_does_not_make_a_good_picture_bad() -> None:
    jpeg, random = encode(photo(), "JPEG"), np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "camera", 72.0
    block = exif.tobytes()[6:]
    for _ in range(200):
        broken = bytearray(block[: random.integers(len(block) + 1)])
        for position in random.integers(0, len(broken), 4) if broken else ():
            broken[position] = random.integers(256)
        got = pixels(with_exif(jpeg, bytes(broken)))
        assert sorted(got.shape) == [3, 40, 60]
        chunk = png_chunk(b"eXIf", bytes(broken))
        assert sorted(pixels(png(2, 1, 8, 0, b"\0\1\2", chunk)).shape) == [1, 2, 3]


# What is refused.


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_its_pixels_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=AssertionError("pixels are read")))
    data = (FOLDER / name).read_bytes()
    with little_memory():
        assert refused(data).error == "DecompressionBomb"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("theirs", [None, 1])
def test_the_limit_is_ours_alone(kind: str, theirs: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)
    data = encode(photo(size=(61, 41)), kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert open_image(data, max_pixels=61 * 41).size == (61, 41)
        with pytest.raises(BadImage, match="DecompressionBomb"):
            open_image(data, max_pixels=61 * 41 - 1)
    assert not caught
    assert theirs == Image.MAX_IMAGE_PIXELS


def test_a_gif_frame_larger_than_its_screen_counts() -> None:
    screen = struct.pack("<6sHHBBB", b"GIF89a", 1, 1, 0, 0, 0)
    frame = b"," + struct.pack("<4HB", 0, 0, 50000, 50000, 0) + b"\x02\x02D\x01\0;"
    with little_memory():
        assert refused(screen + frame).error == "DecompressionBomb"


@pytest.mark.parametrize(
    "name", [name for name in OUTCOMES if name.startswith(("half", "last_byte", "no_end"))]
)
def test_truncated_is_refused_even_where_others_allow_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused((FOLDER / name).read_bytes())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    "name", [name for name, o in OUTCOMES.items() if o == "ok" and name.startswith(("plain", "an"))]
)
def test_a_cut_file_is_refused_unless_no_pixel_is_missing(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    whole = pixels(data)
    cuts = {*range(0, len(data), max(1, len(data) // 100)), *range(len(data) - 30, len(data))}
    for cut in sorted(cuts):
        try:
            got = pixels(data[:cut])
        except BadImage:
            continue
        assert cut > len(data) / 3
        np.testing.assert_array_equal(got, whole, err_msg=f"cut at {cut}")


@pytest.mark.parametrize("name", ["plain.png", "palette.png", "rgba.png", "animated.png"])
def test_no_damage_to_a_png_goes_unseen(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    whole = pixels(data)
    for position in range(len(data)):
        try:
            got = pixels(flip(data, position))
        except BadImage:
            continue
        np.testing.assert_array_equal(got, whole, err_msg=f"byte {position}")


@pytest.mark.parametrize(
    "raised", [OSError("a"), SyntaxError(), MemoryError(), KeyError(1), RecursionError()]
)
def test_whatever_pillow_raises_is_a_bad_image(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=raised))
    bad = refused((FOLDER / "plain.png").read_bytes())
    assert bad.error == type(raised).__name__
    assert bad.message


def test_an_interrupt_is_not_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=KeyboardInterrupt))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(KeyboardInterrupt):
        open_image((FOLDER / "plain.png").read_bytes())
    assert before == Image.MAX_IMAGE_PIXELS


# The error itself.


def test_a_message_is_one_printable_line() -> None:
    bad = BadImage(
        "decode", "OSError", "a\nb\0\x1b[31m\udce9 <_io.BytesIO object at 0x7f0012ab> ü 日 " + "x" * 600
    )
    assert bad.message.startswith("a\\nb\\x00\\x1b[31m\\udce9 <_io.BytesIO object> ü 日 x")
    assert bad.message.isprintable()
    assert len(bad.message) == 500
    assert str(bad) == f"OSError: {bad.message}"
    copy = pickle.loads(pickle.dumps(BadImage(stage="read", error="OSError", message="b\n")))
    assert (copy.stage, copy.error, copy.message) == ("read", "OSError", "b\\n")


# Scaled decoding


@pytest.mark.parametrize(
    ("mode", "kind", "size", "image_size", "decoded", "difference"),
    [
        ("RGB", "JPEG", (2400, 1800), 100, (300, 225), 0.5),
        ("RGB", "JPEG", (2400, 1800), 113, (600, 450), 0.5),
        ("RGB", "JPEG", (399, 399), 100, (399, 399), 0),
        ("RGB", "PNG", (1200, 900), 50, (1200, 900), 0),
        *((mode, "JPEG", (1600, 1200), 60, (200, 150), 1) for mode in ("L", "CMYK")),
    ],
)
def test_a_large_jpeg_is_decoded_scaled_and_hardly_differs(mode, kind, size, image_size, decoded, difference):
    data = encode(photo().resize(size).convert(mode), kind, quality=92)
    assert open_image(data, 2 * image_size).size == decoded
    whole = open_image(data)
    assert whole.size == size
    expected = np.asarray(whole.resize((image_size, image_size), Image.Resampling.BILINEAR), int)
    assert np.abs(decode(data, image_size) - expected).mean() <= difference


def test_a_large_jpeg_that_was_cut_is_refused_all_the_same():
    data = encode(photo().resize((2400, 1800)), "JPEG", quality=92)
    with pytest.raises(BadImage):
        decode(data[: len(data) * 3 // 4], 100)
