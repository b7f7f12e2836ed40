"""Files that are no image for tlray are named, with what to do, whatever their suffix."""

import gzip
import io
import time
import zipfile
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from tests.support import heic
from tests.support.bad_files import encode, photo
from tests.support.listings import refusal
from tlray.core.manifest import package_versions
from tlray.images import decoder, filetypes
from tlray.images.bad_image import BadImage
from tlray.images.decoder import open_image
from tlray.images.listing import Images


@pytest.fixture(params=[True, False], ids=["with pi-heif", "without pi-heif"])
def reads_heic(request, monkeypatch):
    monkeypatch.setattr(filetypes, "reads_heic", lambda: request.param)
    decoder._formats.cache_clear()
    yield request.param
    decoder._formats.cache_clear()


def preview(tag: int, value: int | bytes) -> bytes:
    """A TIFF with one more tag in its first image."""
    return encode(photo(), "TIFF", tiffinfo={tag: value})


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("1.jpg", b"x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (preview(254, 1), "camera's RAW"),  # NEF and ARW
        (preview(50706, b"\x01\x04\0\0"), "camera's RAW"),  # DNG
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "camera's RAW"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "camera's RAW"),
        (b"FUJIFILMCCD-RAW 0201", "camera's RAW"),
        (b"IIRO\x08\0\0\0", "camera's RAW"),
        (b"IIU\0\x18\0\0\0", "camera's RAW"),
        (b"8BPS\0\x01" + bytes(20), "Photoshop"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- c -->\n<!DOCTYPE svg PUBLIC "x">\n<svg>', "SVG"),
        (b"\r\n%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\n<!-- hi --> <!doctype HTML><html><svg></svg>", "HTML page: download it again"),
        (b"<HTML><head>", "HTML"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"message": "Not found"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s3--x.jpg\n", "git annex get"),
        (b"\xff\n" + bytes(30), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x29", "JPEG 2000"),
        (bytes(128) + b"DICM\x02\0", "DICOM"),
        (bytes([0, 0, 2]) + bytes(5000) + b"TRUEVISION-XFILE.\0", "Targa"),
        (b"\0\0\x01\0\x01\0\x10\x10" + bytes(20), "Windows icon"),
        (b"v/1\x01\x02\0\0\0", "OpenEXR"),
        (b"/9j/4AAQSkZJRgABAQAAAQ", "Base64"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "video"),
        (zipped(), "zip"),
        (gzip.compress(b"x"), "gzip"),
        (b"PAR1", "an archive"),
        (b"L\0\0\0\x01\x14\x02\0\0", "Windows shortcut"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "alias or fork"),
        (bytes(9000), "zero bytes"),
        ("Größe\n".encode("latin-1") * 999, "a text"),
        (b"\xc8\x01\x03\x05", "begins with b'\\xc8\\x01"),
    ],
)
def test_a_format_is_named(data, expected):
    with pytest.raises(BadImage) as caught:
        open_image(data)
    assert caught.value.error == "NotAnImage"
    assert expected in caught.value.message


@pytest.mark.parametrize("start", [b"<!", b"<!--", b"[./]*", b" ", b"/", b"<?xml ", b"\0", b"a"])
def test_no_file_keeps_the_patterns_busy(start):
    before = time.process_time()
    with pytest.raises(BadImage):
        open_image(start * 500_000)
    assert time.process_time() - before < 5


@pytest.mark.parametrize("data", [heic.PLAIN, heic.TURNED, heic.ALPHA, heic.SECOND_IS_PRIMARY])
def test_a_heic_is_decoded_if_pi_heif_is_installed(reads_heic, data):
    if not reads_heic:
        with pytest.raises(BadImage, match=r"an HEIC photograph: install tlray\[heic\]"):
            open_image(data)
        return
    expected = photo(size=(48, 32))
    if data is heic.TURNED:
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    if data is heic.ALPHA:
        expected = Image.blend(Image.new("RGB", expected.size, "white"), expected, 128 / 255)
    image = open_image(data)
    assert image.size == expected.size
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 12


@pytest.mark.parametrize("length", [40, 300, -200, -1])
def test_a_heic_that_is_cut_off_or_too_large_is_refused(reads_heic, length):
    with pytest.raises(BadImage, match=None if reads_heic else "HEIC") as caught:
        open_image(heic.PLAIN[:length])
    assert caught.value.error != "NotAnImage" or not reads_heic
    if reads_heic:
        with pytest.raises(BadImage) as caught:
            open_image(heic.PLAIN, max_pixels=48 * 32 - 1)
        assert caught.value.error == "DecompressionBomb"


def test_images_of_kinds_that_are_not_read_are_counted_in_folders(reads_heic, tmp_path):
    for name in ("a/1.jpg", "a/1.HEIC", "b/2.heif", "b/3.png", "b/3.DNG", "b/4.psd", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = Images.open(str(tmp_path))
    listed = {"a/1.jpg": "a", "b/3.png": "b"} | ({"a/1.HEIC": "a", "b/2.heif": "b"} if reads_heic else {})
    assert {row.path: row.label for row in images} == listed
    assert images.unread == {".dng": 1, ".psd": 1} | ({} if reads_heic else {".heic": 1, ".heif": 1})
    assert images.passed_over == {".txt": 1}


def test_a_kind_that_is_not_read_is_refused_with_the_remedy(reads_heic, tmp_path):
    for name in ("1.HEIC", "2.heic", "3.psd"):
        (tmp_path / name).touch()
    assert "cannot read: convert them to JPEG" in refusal(str(tmp_path / "3.psd"))
    if not reads_heic:
        assert "cannot read: install tlray[heic]" in refusal(str(tmp_path / "1.HEIC"))
        assert ".heic: install tlray[heic]; .psd: convert them" in refusal(str(tmp_path))


def test_every_node_must_have_the_pi_heif_of_the_command():
    assert package_versions()["pi-heif"] == metadata.version("pi-heif")
