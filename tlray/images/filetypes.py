"""What the names of files say: which are images, archives, tables or hidden, and the splits they tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
ARCHIVE_SUFFIXES = {".tar": "/", ".parquet": "#"}
"""Of files that may hold images, with what stands between their path and an image's name in it."""
TABLE_SUFFIXES = (".parquet", ".csv")
SPLITS = {s: s for s in ("train", "validation", "test")} | {"val": "validation", "valid": "validation"}

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])", re.IGNORECASE)
_BORDER = re.compile(r"\.tar(?=/)|\.parquet(?=#)", re.IGNORECASE)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_archive(name: str) -> bool:
    return name.lower().endswith(tuple(ARCHIVE_SUFFIXES))


def is_compressed(name: str) -> bool:
    """Whether it is a tar file that has to be read from its beginning."""
    return _COMPRESSED.search(name) is not None


def is_hidden(name: str) -> bool:
    """Of a file or folder, without those above it."""
    return name.startswith(".") or name == "__MACOSX"


def split_of(name: str) -> str | None:
    """The split of an archive named like `train-00000-of-00005.parquet` or `imagenet-val-000001.tar`."""
    found = _SPLIT.search(name)
    return SPLITS[found[1].lower()] if found else None


def inside(path: str) -> Sequence[tuple[str, str]]:
    """The archives that an image with this path may lie in, each with the image's name there; mostly none."""
    return [(path[: found.end()], path[found.end() + 1 :]) for found in _BORDER.finditer(path)]


def text(name: str) -> str:
    """A name that Parquet can hold: bytes that are not UTF-8 become a backslash and their digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
