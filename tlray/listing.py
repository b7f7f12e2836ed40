"""IMAGES -> rows: which image files there are, and their split and label."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import compute, csv, fs

from tlray.errors import UserError
from tlray.storage import Folder

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp",
    ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
)  # fmt: skip
TABLE_SUFFIXES = (".parquet", ".csv")
SPLITS = {s: s for s in ("train", "validation", "test")} | {"val": "validation", "valid": "validation"}

_EXPECTED = "a folder of images, one image, or a .parquet or .csv table with a column 'path'"


class Listed(NamedTuple):
    """One image that was found; nothing of it has been read."""

    path: str
    """Relative to the image root, with forward slashes; the identity of the row."""
    split: str | None
    label: str | None
    size: int | None
    """In bytes; None where the file cannot be asked, and for the rows of a table."""
    modified: datetime | None


class _Entry(NamedTuple):
    path: str
    """Relative to the root, as the file system spells it; a folder's is empty or ends in a slash."""
    info: fs.FileInfo | None = None
    """What a remote listing said of it; a local file is asked only when it is its turn."""
    trail: tuple[tuple[int, int], ...] = ()
    """Device and inode of every local folder it lies in."""

    @property
    def is_folder(self) -> bool:
        return not self.path or self.path.endswith("/")

    @property
    def is_image(self) -> bool:
        return self.path.lower().endswith(IMAGE_SUFFIXES)


_TOP = _Entry("")


@dataclass
class Images:
    """The images of a folder, sorted by path; or of a table, in its order; or one alone.

    Iterating streams them. It raises a UserError for a folder that cannot be listed and, at the end,
    if there was no image.
    """

    root: Folder
    """Paths are relative to it."""
    others: int = field(default=0, init=False)
    """How many files the last whole iteration passed over because they are no images."""
    _start: _Entry = _TOP
    _has_splits: bool = False
    _assigned: tuple[float, int] | None = None
    """Fraction and seed of the split that `assign` gives."""

    @classmethod
    def open(cls, uri: str) -> Images:
        """Find out how the images at a path or URI are laid out.

        If all folders of a folder have names of splits, in any case, then classes are below those.
        Else its folders are the classes; but a `train` among them is refused as half a split.

        Raises:
            UserError: nothing is there, or it is none of the above; or a table has no rows, or a row
                with no path, the path of another row, or an unknown split.
        """
        given = Folder.open(uri)
        info = _info(given)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{uri!r} is not there, or may not be seen: expected {_EXPECTED}")
        if info.type == fs.FileType.Directory:
            images = cls(given)
        else:
            folder, name = posixpath.split(given.path)
            root = Folder(given.filesystem, folder, posixpath.dirname(given.uri))
            images = cls(root, _Entry(name, None if given.is_local else info))
        if _text(images.root.path) != images.root.path:
            raise UserError(f"the folder {images.root.path!r} has a name that is not UTF-8: rename it")
        if images.is_table:
            images._check_table()
        elif images._start.is_folder:
            images._has_splits = images._find_splits()
        elif not images._start.is_image:
            raise UserError(f"{uri!r} is by its name neither image nor table: expected {_EXPECTED}")
        return images

    def __iter__(self) -> Iterator[Listed]:
        rows = self._rows() if self.is_table else self._walk()
        return rows if self._assigned is None else self._with_split(rows, *self._assigned)

    def assign(self, fraction: float | None, seed: int) -> Images:
        """The same images, each with the split that `assign_split` gives it; as they are without a fraction.

        Iterating then raises a UserError if they have splits of their own.
        """
        return self if fraction is None else replace(self, _assigned=(fraction, seed))

    def check_outside(self, out: Folder) -> None:
        """Raise UserError if what is written to a folder would be found among the images."""
        inside = f"{out.path}/".startswith(f"{self.root.path}/") and out.filesystem == self.root.filesystem
        if inside and not self.is_table:
            raise UserError(f"--out {out.uri} lies among the images: choose a folder beside {self.root.uri}")

    def _with_split(self, rows: Iterator[Listed], fraction: float, seed: int) -> Iterator[Listed]:
        for row in rows:
            if row.split is not None:
                raise UserError(
                    f"--split {fraction:g} given, but the images have splits already ({row.split}): "
                    "leave --split away, or give one of the folders"
                )
            yield row._replace(split=assign_split(row.path, fraction, seed))

    @property
    def is_table(self) -> bool:
        """Whether they are the rows of a table, whose images may lie anywhere."""
        return self._start.path.lower().endswith(TABLE_SUFFIXES)

    def _walk(self) -> Iterator[Listed]:
        found, others, extensions = False, 0, set[str]()
        pending = [self._start]
        while pending:
            entry = pending.pop()
            if entry.is_folder:
                pending += reversed(self._below(entry))
            elif entry.is_image:
                found = True
                yield self._listed(entry)
            else:
                others += 1
                if len(extensions) < 8:
                    extensions.add(posixpath.splitext(_text(entry.path))[1] or "(none)")
        self.others = others
        if not found:
            raise UserError(
                f"no image in {self.root.uri!r}: found {others} other files"
                f"{', extensions ' if others else ''}{', '.join(sorted(extensions))};\n"
                f"expected {' '.join(IMAGE_SUFFIXES)}, with or without a folder per class"
            )

    def _below(self, folder: _Entry) -> list[_Entry]:
        """What a folder holds, in the order that makes the paths of a whole walk sorted."""
        place = self.root.join(folder.path)
        try:
            return sorted(self._scan(folder, place), key=lambda entry: _text(entry.path))
        except OSError as error:
            raise UserError(
                f"cannot list the folder {place!r}: {error.strerror or error};\n"
                "its images cannot be counted: make it readable, or move it away"
            ) from error

    def _scan(self, folder: _Entry, place: str) -> Iterator[_Entry]:
        if not self.root.is_local:
            for info in self.root.filesystem.get_file_info(fs.FileSelector(place.rstrip("/"))):
                if not _is_hidden(info.base_name):
                    slash = "/" if info.type == fs.FileType.Directory else ""
                    yield _Entry(f"{folder.path}{info.base_name}{slash}", info)
            return
        above = folder.trail or tuple(_identity(os.stat(p)) for p in Path(os.path.realpath(place)).parents)
        trail = (*above, _identity(os.stat(place)))
        with os.scandir(place) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if not _is_folder(entry):
                    yield _Entry(folder.path + entry.name, None, trail)
                elif _identity(entry.stat()) not in trail:
                    yield _Entry(f"{folder.path}{entry.name}/", None, trail)

    def _listed(self, entry: _Entry) -> Listed:
        path = _text(entry.path)
        folders = path.split("/")[:-1]
        split = SPLITS.get(folders.pop(0).lower()) if self._has_splits and folders else None
        label = folders[0] if folders else None
        if entry.info is not None:
            return Listed(path, split, label, entry.info.size, entry.info.mtime)
        try:
            status = os.stat(self.root.join(entry.path))
            modified = datetime.fromtimestamp(status.st_mtime, UTC)
        except (OSError, ValueError, OverflowError):  # A link to nowhere, or a date after the year 9999.
            return Listed(path, split, label, None, None)
        return Listed(path, split, label, status.st_size, modified)

    def _find_splits(self) -> bool:
        names = [entry.path[:-1] for entry in self._below(self._start) if entry.is_folder]
        splits = [name for name in names if name.lower() in SPLITS]
        classes = [name for name in names if name.lower() not in SPLITS]
        if classes and any(name.lower() == "train" for name in splits):
            raise UserError(
                f"{self.root.uri!r} mixes splits {splits} with {len(classes)} other folders {classes[:5]};\n"
                "expected only splits, or only classes: move the others away, or into the splits"
            )
        return bool(splits) and not classes

    def _check_table(self) -> None:
        """Refuse a table now rather than after hours, with 8 bytes a row."""
        table = self.root.join(self._start.path)
        hashes = array("q", (hash(row.path) for row in self._rows()))
        if not hashes:
            raise UserError(f"the table {table!r} has no rows: expected one per image")
        counts = pa.Array.from_buffers(pa.int64(), len(hashes), [None, pa.py_buffer(hashes)]).value_counts()
        repeated = counts.filter(compute.greater(counts.field("counts"), 1)).field("values")
        suspects, seen = set(repeated.to_pylist()), set[str]()
        for row in self._rows() if suspects else ():
            if row.path in seen:
                raise UserError(f"the table {table!r} has the path {row.path!r} twice: remove one")
            if hash(row.path) in suspects:
                seen.add(row.path)

    def _rows(self) -> Iterator[Listed]:
        table = self.root.join(self._start.path)
        for number, (path, label, split) in enumerate(_cells(self.root.filesystem, table), start=1):
            if not path or (split and split.lower() not in SPLITS):
                fault = f"the split {split!r}: expected {', '.join(SPLITS)}, or nothing"
                fault = fault if path else "no path: fill it in, or remove the row"
                raise UserError(f"row {number} of the table {table!r} has {fault}")
            yield Listed(path, SPLITS[split.lower()] if split else None, label or None, None, None)


def assign_split(path: str, fraction: float, seed: int) -> str:
    """Choose 'train' with probability `fraction`, else 'test', by nothing but the path and the seed.

    A path stays on its side for ever; a larger fraction only moves some from test to train.
    """
    # 48 bits are exact in a float, so that a fraction of 1 takes all.
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=6).digest()
    return "train" if int.from_bytes(digest, "big") / 2**48 < fraction else "test"


def _info(given: Folder) -> fs.FileInfo:
    if given.is_local:
        # Even a link to nowhere is there: it is listed, and decoding it says what is wrong.
        there = fs.FileType.File if os.path.lexists(given.path) else fs.FileType.NotFound
        return fs.FileInfo("", fs.FileType.Directory if os.path.isdir(given.path) else there)
    try:
        return given.filesystem.get_file_info(given.path)
    except OSError as error:
        raise UserError(f"cannot reach {given.uri!r}: {error}") from error


def _cells(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str | None, ...]]:
    """The path, label and split of every row of a table as text; None for all of a missing column."""
    from pyarrow import dataset  # Slow to import, and folders do without.

    wanted = ("path", "label", "split")
    layout = "parquet"
    if path.lower().endswith(".csv"):
        # Typed, because inference would make 7 of the label 007.
        typed = csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()))
        layout = dataset.CsvFileFormat(csv.ParseOptions(newlines_in_values=True), convert_options=typed)
    try:
        table = dataset.dataset(path, filesystem=filesystem, format=layout)
        names = table.schema.names
        if "path" not in names:
            raise UserError(f"the table {path!r} needs a column 'path'; its columns are {names}")
        cells = {name: dataset.field(name) if name in names else dataset.scalar(None) for name in wanted}
        for batch in table.to_batches(columns={name: cells[name].cast(pa.string()) for name in wanted}):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rpartition("': ")[2]
        raise UserError(f"cannot read the table {path!r}: {reason}") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A link that leads nowhere is no folder; one that may not be followed could be.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or entry.name.lower().endswith(IMAGE_SUFFIXES):
            return False
        raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _text(name: str) -> str:
    """A name that Parquet can hold: bytes that are not UTF-8 become a backslash and their digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
