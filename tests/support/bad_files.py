"""Odd image files of every kind, made by code, and what has to become of each."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(32)


def photo(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture whose pixels all differ a little, so that nothing about it is symmetric."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    bands = [x * 255 // max(1, size[0] - 1), y * 255 // max(1, size[1] - 1), (3 * x + 5 * y) % 256]
    return Image.fromarray(np.stack(bands, -1).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str, *others: Image.Image, **options: object) -> bytes:
    """A file of this image and, if there are any, of others after it."""
    if others:
        options |= {"save_all": True, "append_images": [other.copy() for other in others]}
    stream = io.BytesIO()
    # Copies, because saving a JPEG leaves settings in the image that break other formats.
    image.copy().save(stream, kind, **options)
    return stream.getvalue()


def grey16(size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.linspace(0, 65535, size[0] * size[1]).round().astype(np.uint16).reshape(size[::-1])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, raw: bytes, *chunks: bytes) -> bytes:
    """A PNG of these raw scan lines, with extra chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def tiff(data: bytes, width: int, height: int, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF of kinds that Pillow reads but cannot write."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """A JPEG with this as its EXIF block, sensible or not."""
    block = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def damaged_parquet(data: bytes) -> dict[str, bytes]:
    """What can become of a Parquet file."""
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    return {
        "empty": b"",
        "text": b"no parquet at all",
        "truncated": data[: len(data) // 2],
        # All but the footer and the magic numbers.
        "overwritten": data[:4] + b"\xff" * (len(data) - footer - 4) + data[-footer:],
    }


def write_bad_files(folder: Path) -> dict[str, str]:
    """Fill a folder with one file of every kind.

    It also gets a folder named like an image and a link that leads back to the folder itself, which
    a listing must neither count nor follow for ever.

    Returns:
        For the name of each file, as a listing writes it: `ok`, or the stage that refuses it.
    """
    outcomes = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _good():
        (folder / name).write_bytes(data)
        outcomes[name] = "ok"
    for name, data in _undecodable():
        (folder / name).write_bytes(data)
        outcomes[name] = "decode"
    for name in _unreadable(folder):
        outcomes[name] = "read"
    (folder / "linked.jpg").symlink_to("plain.jpg")
    outcomes["linked.jpg"] = "ok"
    (folder / "folder.jpg").mkdir()
    (folder / "around").symlink_to(".")
    return outcomes


def _good() -> Iterator[tuple[str, bytes]]:
    rgb, turned = photo(), photo().rotate(180)
    jpeg = encode(rgb, "JPEG")
    palette = rgb.quantize(16)
    alpha = photo()
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    exif = Image.Exif()
    exif[0x0112] = 6

    yield "plain.jpg", jpeg
    yield "upper.JPG", jpeg
    yield "progressive.jpeg", encode(rgb, "JPEG", progressive=True)
    yield "grey.jpg", encode(photo("L"), "JPEG")
    yield "cmyk.jpg", encode(photo("CMYK"), "JPEG")
    yield "mpo.jpg", encode(rgb, "MPO", turned)
    yield "rotated.jpg", encode(rgb, "JPEG", exif=exif)
    yield "broken_exif.jpg", with_exif(jpeg, b"II*\0\xff\xff\xff\xff" + bytes(range(40)))
    yield "trailing_garbage.jpg", jpeg + bytes(range(256))
    yield "name with spaces.jpg", jpeg
    yield "new\nline.jpg", jpeg
    yield "größe 日本語 🐈.jpg", jpeg
    yield "percent%20,comma'quote\"back\\slash.jpg", jpeg
    yield f"{'long' * 60}.jpg", jpeg

    yield "plain.png", encode(rgb, "PNG")
    yield "png_named.jpg", encode(rgb, "PNG")
    yield "grey.png", encode(photo("L"), "PNG")
    yield "one_bit.png", encode(photo("1"), "PNG")
    yield "one_pixel.png", encode(photo(size=(1, 1)), "PNG")
    yield "wide.png", encode(photo(size=(5000, 1)), "PNG")
    yield "tall.png", encode(photo(size=(1, 5000)), "PNG")
    yield "rgba.png", encode(alpha, "PNG")
    yield "grey_alpha.png", encode(alpha.convert("LA"), "PNG")
    yield "palette.png", encode(palette, "PNG")
    yield "palette_one_transparent.png", encode(palette, "PNG", transparency=3)
    yield "palette_transparent.png", encode(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    yield "grey_trns.png", encode(photo("L"), "PNG", transparency=76)
    yield "rgb_trns.png", encode(rgb, "PNG", transparency=(0, 0, 0))
    yield "grey_16_bit.png", encode(Image.fromarray(grey16()), "PNG")
    yield "rgb_16_bit.png", png(2, 1, 16, 2, b"\0" + struct.pack(">6H", *range(0, 60000, 10000)))
    yield "animated.png", encode(rgb, "PNG", turned)
    yield "rotated.png", encode(rgb, "PNG", exif=exif)
    yield "broken_exif.png", png(2, 1, 8, 0, b"\0\1\2", png_chunk(b"eXIf", b"no EXIF"))

    yield "plain.gif", encode(rgb, "GIF")
    yield "animated.gif", encode(rgb, "GIF", turned)
    yield "transparent.gif", encode(palette, "GIF", transparency=3)
    yield "plain.webp", encode(rgb, "WEBP")
    yield "animated.webp", encode(rgb, "WEBP", turned)
    yield "alpha.webp", encode(alpha, "WEBP", lossless=True)
    yield "plain.bmp", encode(rgb, "BMP")
    yield "palette.bmp", encode(palette, "BMP")
    yield "plain.tif", encode(rgb, "TIFF")
    yield "lzw.tiff", encode(rgb, "TIFF", compression="tiff_lzw")
    yield "pages.tif", encode(rgb, "TIFF", turned)
    yield "lab.tif", encode(photo("LAB"), "TIFF")
    yield "cmyk.tif", encode(photo("CMYK"), "TIFF")
    yield "palette_alpha.tif", encode(alpha.convert("PA"), "TIFF")
    yield "grey_16_bit.tif", encode(Image.fromarray(grey16()), "TIFF")
    yield "grey_16_bit_big_endian.tif", encode(Image.fromarray(grey16().astype(">u2")), "TIFF")
    yield "grey_32_bit_in_range.tif", encode(Image.fromarray(grey16().astype(np.int32)), "TIFF")
    yield "plain.ppm", encode(rgb, "PPM")
    yield "text.ppm", b"P3 2 1 255\n255 0 0 0 0 255\n"
    yield "grey_16_bit.pgm", encode(Image.fromarray(grey16()), "PPM")
    yield "plain.avif", encode(rgb, "AVIF")


def _undecodable() -> Iterator[tuple[str, bytes]]:
    rgb = photo()
    jpeg, whole_png, webp = encode(rgb, "JPEG"), encode(rgb, "PNG"), encode(rgb, "WEBP")
    scan = jpeg.index(b"\xff\xda")
    bomb_gif = struct.pack("<6sHHBBB", b"GIF89a", 65535, 65535, 0, 0, 0)
    bomb_gif += b"," + struct.pack("<4HB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;"
    bomb_webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\x3f\0\xff\x3f\0"

    yield "empty.jpg", b""
    yield "empty.png", b""
    yield "one_byte.jpg", b"\xff"
    yield "zeros.jpg", bytes(4096)
    yield "text.jpg", b"This is a text, not an image.\n" * 9
    yield "page.png", HTML
    yield "drawing.png", SVG
    yield "pdf.jpg", PDF
    yield "eps.jpg", EPS
    yield "heic.jpg", HEIC
    yield "zip.jpg", b"PK\x03\x04" + bytes(60)
    yield "python.jpg", b"Python is not a PPM\n"
    yield "git_lfs_pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    yield "jpeg_magic.jpg", b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(2000)
    yield "header_only.jpg", jpeg[:scan]
    yield "half.jpg", jpeg[: len(jpeg) // 2]
    yield "last_byte_missing.jpg", jpeg[:-1]
    yield "half_progressive.jpg", encode(rgb, "JPEG", progressive=True)[:-100]
    yield "no_size.jpg", jpeg.replace(struct.pack(">HH", 40, 60), bytes(4))
    yield "half.png", whole_png[: len(whole_png) // 2]
    yield "no_end.png", whole_png[:-12]
    yield "wrong_pixels.png", flip(whole_png, whole_png.index(b"IDAT") + 40)
    yield "wrong_checksum.png", flip(whole_png, whole_png.index(b"IEND") - 6)
    yield "wrong_header.png", flip(whole_png, 19)
    yield "bomb.png", png(60000, 60000, 8, 2, bytes(1000))
    yield "bomb_rows.png", png(2_000_000_000, 1, 1, 0, bytes(1000))
    yield (
        "text_bomb.png",
        png(1, 1, 8, 0, b"\0\0", png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000)))),
    )
    yield "no_pixels.png", png(4, 4, 8, 0, b"")
    yield "half.gif", encode(rgb, "GIF")[:1500]
    yield "header_only.gif", b"GIF89a\x0a\0\x0a\0\0\0\0"
    yield "bomb.gif", bomb_gif
    yield "half.webp", webp[: len(webp) // 2]
    yield "bomb.webp", b"RIFF" + struct.pack("<I", len(bomb_webp) + 4) + b"WEBP" + bomb_webp
    yield "half.bmp", encode(rgb, "BMP")[:3000]
    yield "bomb.bmp", b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 50000, 50000, 1, 24, *[0] * 6)
    yield "half.tif", encode(rgb, "TIFF")[:3000]
    yield "half_lzw.tif", encode(rgb, "TIFF", compression="tiff_lzw")[:3000]
    yield "bomb.tif", tiff(bytes(100), 50000, 50000, 8, 1)
    yield "float.tif", encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    yield "grey_32_bit.tif", encode(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF")
    yield "signed.tif", tiff(struct.pack("<4h", -5, 0, 5, 10), 4, 1, 16, 1, sample_format=2)
    yield "half.ppm", encode(rgb, "PPM")[:3000]
    yield "bomb.ppm", b"P6 99999 99999 255\n" + bytes(99)
    yield "half.avif", encode(rgb, "AVIF")[:300]


def _unreadable(folder: Path) -> Iterator[str]:
    (folder / "nowhere.jpg").symlink_to("not_there.jpg")
    yield "nowhere.jpg"
    (folder / "loop.jpg").symlink_to("loop.jpg")
    yield "loop.jpg"
    os.mkfifo(folder / "pipe.jpg")
    yield "pipe.jpg"
    # Not with bind, which takes short paths only.
    os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)
    yield "socket.jpg"
    (folder / "device.jpg").symlink_to("/dev/zero")
    yield "device.jpg"
    # Reading it fails even for root, who may read what nobody may.
    (folder / "input_output_error.jpg").symlink_to("/proc/self/mem")
    yield "input_output_error.jpg"
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encode(photo(), "JPEG"))
    yield "caf\\xe9.jpg"
    if os.geteuid() != 0:
        (folder / "forbidden.jpg").write_bytes(encode(photo(), "JPEG"))
        (folder / "forbidden.jpg").chmod(0)
        yield "forbidden.jpg"
