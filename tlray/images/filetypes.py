"""What the suffix of a file says: whether it is an image, an archive or a table."""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
UNREAD_SUFFIXES = (
    ".jxl", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxr", ".wdp", ".hdp", ".heics", ".heifs", ".psd",
    ".psb", ".xcf", ".svg", ".svgz", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf",
    ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".ico", ".tga", ".dds",
    ".exr", ".hdr", ".pfm", ".pam", ".qoi", ".bpg", ".flif", ".pcx", ".sgi", ".ras", ".xbm", ".xpm",
    ".emf", ".wmf", ".dcm", ".dicom", ".fits", ".nii", ".eps", ".djvu", ".svs", ".ndpi", ".czi",
)  # fmt: skip
"""The suffixes of kinds of images that tlray cannot read, besides `HEIC_SUFFIXES` without pi-heif."""
ARCHIVE_SUFFIXES = {".tar": "/", ".parquet": "#"}
"""The suffixes of archives, each with the separator between the archive's path and an image's name in it."""
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")

_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BORDER = re.compile(r"\.tar(?=/)|\.parquet(?=#)", re.IGNORECASE)


@functools.cache
def reads_heic() -> bool:
    """Whether pi-heif, which decodes HEIC, is installed (`tlray[heic]`)."""
    return find_spec("pi_heif") is not None


def is_image(name: str) -> bool:
    """Whether a name is that of an image that tlray reads."""
    return name.lower().endswith((*IMAGE_SUFFIXES, *HEIC_SUFFIXES) if reads_heic() else IMAGE_SUFFIXES)


def is_unread(name: str) -> bool:
    """Whether a name is that of an image of a kind that tlray cannot read."""
    return name.lower().endswith(UNREAD_SUFFIXES if reads_heic() else (*UNREAD_SUFFIXES, *HEIC_SUFFIXES))


def remedy(suffix: str) -> str:
    """What makes images with a suffix of an unread kind readable."""
    return "install tlray[heic]" if suffix.lower() in HEIC_SUFFIXES else "convert them to JPEG or PNG"


def is_listed(name: str) -> bool:
    """Whether an archive that has a file of this name lists it as an image, even if it cannot be read."""
    return is_image(name) or is_unread(name)


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
