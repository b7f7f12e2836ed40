"""Odd image files of every kind, made by code, and what has to become of each."""

import io
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {
    **{"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP"},
    **{"bmp": "BMP", "tif": "TIFF", "ppm": "PPM", "avif": "AVIF"},
}
"""Every format that tlray reads, by the suffix of its files here."""


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


def lossless_jpeg(grey: np.ndarray) -> bytes:
    """A JPEG of the lossless kind, which Pillow cannot write, of these grey values."""
    before = np.concatenate([np.append(128, grey[:-1, 0])[:, None], grey[:, :-1]], 1)
    bits = []
    for difference in (grey - before).ravel().tolist():
        length = abs(difference).bit_length()
        value = difference if difference > 0 else difference + (1 << length) - 1
        bits.append(f"{length:04b}" + (f"{value:0{length}b}" if length else ""))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    body = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    codes = b"\xff\xc4" + struct.pack(">H", 28) + bytes([0, 0, 0, 0, 9, *[0] * 12]) + bytes(range(9))
    frame = b"\xff\xc3" + struct.pack(">HBHHB", 11, 8, *grey.shape, 1) + bytes([1, 0x11, 0])
    return b"\xff\xd8" + frame + codes + b"\xff\xda\0\x08\x01\x01\0\x01\0\0" + body + b"\xff\xd9"


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
    good, undecodable = _good(), _undecodable()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {**good, **undecodable}.items():
        (folder / name).write_bytes(data)
    (folder / "linked.jpg").symlink_to("plain.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "around").symlink_to(".")
    stages = {"ok": [*good, "linked.jpg"], "decode": undecodable, "read": _write_unreadable(folder)}
    return {name: stage for stage, names in stages.items() for name in names}


def _good() -> dict[str, bytes]:
    rgb, turned = photo(), photo().rotate(180)
    jpeg = encode(rgb, "JPEG")
    palette = rgb.quantize(16)
    alpha, deep = photo(), Image.fromarray(grey16())
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd_names = ["upper.JPG", "name with spaces.jpg", "new\nline.jpg", "größe 日本語 🐈.jpg"]
    odd_names += ["percent%20,comma'quote\"back\\slash.jpg", f"{'long' * 60}.jpg"]
    return {
        **{f"plain.{suffix}": encode(rgb, kind) for suffix, kind in FORMATS.items()},
        **{f"animated.{suffix}": encode(rgb, FORMATS[suffix], turned) for suffix in ("png", "gif", "webp")},
        **{f"grey.{suffix}": encode(photo("L"), FORMATS[suffix]) for suffix in ("jpg", "png")},
        **{f"cmyk.{suffix}": encode(photo("CMYK"), FORMATS[suffix]) for suffix in ("jpg", "tif")},
        **{f"rotated.{suffix}": encode(rgb, FORMATS[suffix], exif=exif) for suffix in ("jpg", "png")},
        **{f"palette.{suffix}": encode(palette, FORMATS[suffix]) for suffix in ("png", "bmp")},
        **{f"grey_16_bit.{suffix}": encode(deep, FORMATS[suffix]) for suffix in ("png", "tif")},
        **dict.fromkeys(odd_names, jpeg),
        "progressive.jpeg": encode(rgb, "JPEG", progressive=True),
        "mpo.jpg": encode(rgb, "MPO", turned),
        "broken_exif.jpg": with_exif(jpeg, b"II*\0\xff\xff\xff\xff" + bytes(range(40))),
        "trailing_garbage.jpg": jpeg + bytes(range(256)),
        "png_named.jpg": encode(rgb, "PNG"),
        "one_bit.png": encode(photo("1"), "PNG"),
        "one_pixel.png": encode(photo(size=(1, 1)), "PNG"),
        "wide.png": encode(photo(size=(5000, 1)), "PNG"),
        "tall.png": encode(photo(size=(1, 5000)), "PNG"),
        "rgba.png": encode(alpha, "PNG"),
        "grey_alpha.png": encode(alpha.convert("LA"), "PNG"),
        "palette_one_transparent.png": encode(palette, "PNG", transparency=3),
        "palette_transparent.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "grey_trns.png": encode(photo("L"), "PNG", transparency=76),
        "rgb_trns.png": encode(rgb, "PNG", transparency=(0, 0, 0)),
        "rgb_16_bit.png": png(2, 1, 16, 2, b"\0" + struct.pack(">6H", *range(0, 60000, 10000))),
        "broken_exif.png": png(2, 1, 8, 0, b"\0\1\2", png_chunk(b"eXIf", b"no EXIF")),
        "transparent.gif": encode(palette, "GIF", transparency=3),
        "alpha.webp": encode(alpha, "WEBP", lossless=True),
        "lzw.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "pages.tif": encode(rgb, "TIFF", turned),
        "lab.tif": encode(photo("LAB"), "TIFF"),
        "palette_alpha.tif": encode(alpha.convert("PA"), "TIFF"),
        "grey_16_bit_big_endian.tif": encode(Image.fromarray(grey16().astype(">u2")), "TIFF"),
        "grey_32_bit_in_range.tif": encode(Image.fromarray(grey16().astype(np.int32)), "TIFF"),
        "text.ppm": b"P3 2 1 255\n255 0 0 0 0 255\n",
        "grey_16_bit.pgm": encode(deep, "PPM"),
    }


def _undecodable() -> dict[str, bytes]:
    rgb = photo()
    jpeg, whole_png = encode(rgb, "JPEG"), encode(rgb, "PNG")
    bomb_gif = struct.pack("<6sHHBBB", b"GIF89a", 65535, 65535, 0, 0, 0)
    bomb_gif += b"," + struct.pack("<4HB", 0, 0, 65535, 65535, 0) + b"\x02\x02D\x01\0;"
    bomb_webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\x3f\0\xff\x3f\0"
    text_bomb = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000)))
    halves = {f"half.{suffix}": encode(rgb, kind) for suffix, kind in FORMATS.items()}
    halves["half_lzw.tif"] = encode(rgb, "TIFF", compression="tiff_lzw")
    return {
        **{name: data[: len(data) // 2] for name, data in halves.items()},
        **dict.fromkeys(["empty.jpg", "empty.png"], b""),
        "one_byte.jpg": b"\xff",
        "zeros.jpg": bytes(4096),
        "text.jpg": b"This is a text, not an image.\n" * 9,
        "page.png": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        "drawing.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pdf.jpg": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(32),
        "zip.jpg": b"PK\x03\x04" + bytes(60),
        "python.jpg": b"Python is not a PPM\n",
        "git_lfs_pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "jpeg_magic.jpg": b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(2000),
        "header_only.jpg": jpeg[: jpeg.index(b"\xff\xda")],
        "last_byte_missing.jpg": jpeg[:-1],
        "half_progressive.jpg": encode(rgb, "JPEG", progressive=True)[:-100],
        "no_size.jpg": jpeg.replace(struct.pack(">HH", 40, 60), bytes(4)),
        "no_end.png": whole_png[:-12],
        "wrong_pixels.png": flip(whole_png, whole_png.index(b"IDAT") + 40),
        "wrong_checksum.png": flip(whole_png, whole_png.index(b"IEND") - 6),
        "wrong_header.png": flip(whole_png, 19),
        "no_pixels.png": png(4, 4, 8, 0, b""),
        "header_only.gif": b"GIF89a\x0a\0\x0a\0\0\0\0",
        "float.tif": encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        "grey_32_bit.tif": encode(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"),
        "signed.tif": tiff(struct.pack("<4h", -5, 0, 5, 10), 4, 1, 16, 1, sample_format=2),
        "bomb.png": png(60000, 60000, 8, 2, bytes(1000)),
        "bomb_rows.png": png(2_000_000_000, 1, 1, 0, bytes(1000)),
        "text_bomb.png": png(1, 1, 8, 0, b"\0\0", text_bomb),
        "bomb.gif": bomb_gif,
        "bomb.webp": b"RIFF" + struct.pack("<I", len(bomb_webp) + 4) + b"WEBP" + bomb_webp,
        "bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 50000, 50000, 1, 24, *[0] * 6),
        "bomb.tif": tiff(bytes(100), 50000, 50000, 8, 1),
        "bomb.ppm": b"P6 99999 99999 255\n" + bytes(99),
    }


def _write_unreadable(folder: Path) -> list[str]:
    links = {"nowhere.jpg": "not_there.jpg", "loop.jpg": "loop.jpg", "device.jpg": "/dev/zero"}
    links["input_output_error.jpg"] = "/proc/self/mem"  # Reading it fails even for root.
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)  # `socket.bind` takes short paths only.
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encode(photo(), "JPEG"))
    names = [*links, "pipe.jpg", "socket.jpg", "caf\\xe9.jpg"]
    if os.geteuid() != 0:
        (folder / "forbidden.jpg").write_bytes(encode(photo(), "JPEG"))
        (folder / "forbidden.jpg").chmod(0)
        names.append("forbidden.jpg")
    return names
