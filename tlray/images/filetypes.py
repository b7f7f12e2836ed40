"""What the suffix of a file says: whether it is an image, an archive or a table."""

from __future__ import annotations

import re

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
ARCHIVE_SUFFIXES = {".tar": "/", ".parquet": "#"}
"""The suffixes of archives, each with the separator between the archive's path and an image's name in it."""
TABLE_SUFFIXES = (".parquet", ".csv")
UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
"""The suffixes of images that tlray cannot read."""

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BORDER = re.compile(r"\.tar(?=/)|\.parquet(?=#)", re.IGNORECASE)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_archive(name: str) -> bool:
    return name.lower().endswith(tuple(ARCHIVE_SUFFIXES))


def is_compressed(name: str) -> bool:
    """Whether this is a compressed tar file, which can be read only from its beginning."""
    return _COMPRESSED.search(name) is not None


def possible_archives(path: str) -> list[tuple[str, str]]:
    """The archives that may contain the image with this path, each with the image's name in it."""
    return [(path[: match.end()], path[match.end() + 1 :]) for match in _BORDER.finditer(path)]


def valid_text(name: str) -> str:
    """A name that Parquet can store: a byte that is not UTF-8 becomes a backslash and its digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
