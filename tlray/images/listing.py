"""IMAGES -> rows: which image files there are, and their split and label."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from pyarrow import fs

from tlray.core.errors import UserError
from tlray.core.storage import Folder, StrPath
from tlray.images import filetypes
from tlray.images.archives.base import Damaged, Found
from tlray.images.filetypes import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, SPLITS, TABLE_SUFFIXES
from tlray.images.reader import Place, open_archive
from tlray.images.walk import Entry, below, walk

_EXPECTED = "a folder, an image, a .tar or .parquet of images, or a .parquet or .csv table of a column 'path'"


class Listed(NamedTuple):
    """One image that was found; nothing of it has been read."""

    path: str
    """Relative to the image root, with forward slashes; the identity of the row."""
    split: str | None
    label: str | None
    size: int | None
    """In bytes; None where the file cannot be asked, and for the rows of a table."""
    modified: datetime | None
    """Of the file that it is, or lies in."""
    offset: int | None = None
    """Of an image in an archive; see `tlray.images.archives.base.Found`."""

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.path, self.offset, self.modified)


_TOP = Entry("")


@dataclass
class Images:
    """The images of a folder, sorted by path; of an archive or a table, in its order; or one alone.

    In a folder, tar files and Parquet files of images stand for the images in them, whose paths are
    `shard.tar/member` and `file.parquet#key`, or `file.parquet#row` if it has no column of keys.
    What an image itself says of its split and label (in the `.cls` member of its sample, or in the columns of
    its row) goes before the folder that a member has in a tar file, and that before the folders above the
    archive. An archive whose name has a split in it, as `train-00000-of-00005.parquet`, is of that one if no
    folder says otherwise.

    Iterating streams them. It raises a UserError for a folder that cannot be listed and, at the end,
    if there was no image.
    """

    root: Folder
    """Paths are relative to it."""
    others: int = field(default=0, init=False)
    """How many files the last whole iteration passed over because they are no images."""
    _start: Entry = _TOP
    _is_table: bool = False
    """Whether they are the rows of a table, whose images may lie anywhere."""
    _has_splits: bool = False
    _assigned: tuple[float, int] | None = None
    """Fraction and seed of the split that `assign` gives."""

    @classmethod
    def open(cls, uri: StrPath) -> Images:
        """Find out how the images at a path or URI are laid out.

        If all folders of a folder have names of splits, in any case, then classes are below those.
        Else its folders are the classes; but a `train` among them is refused as half a split.

        Raises:
            UserError: nothing is there, or it is none of the above; or a table has no rows, or a row
                with no path, the path of another row, or an unknown split.
        """
        uri = os.fspath(uri)
        given = Folder.open(uri)
        info = _info(given)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{uri!r} is not there, or may not be seen: expected {_EXPECTED}")
        if info.type == fs.FileType.Directory:
            images = cls(given)
        else:
            folder, name = posixpath.split(given.path)
            root = Folder(given.filesystem, folder, posixpath.dirname(given.uri))
            images = cls(root, Entry(name, None if given.is_local else info))
        if filetypes.text(images.root.path) != images.root.path:
            raise UserError(f"the folder {images.root.path!r} has a name that is not UTF-8: rename it")
        if images._start.is_folder:
            images._has_splits = images._find_splits()
        elif filetypes.is_compressed(images._start.path):
            raise _unpack(uri)
        elif images._start.path.lower().endswith(TABLE_SUFFIXES) and not images._is_archive():
            from tlray.images import table  # Slow to import, and folders do without.

            images._is_table = True
            table.check(images.root.filesystem, images.root.join(images._start.path))
        elif not images._start.opens and not filetypes.is_image(images._start.path):
            raise UserError(f"{uri!r} is by its name neither image nor table: expected {_EXPECTED}")
        return images

    def __iter__(self) -> Iterator[Listed]:
        rows = self._rows() if self._is_table else self._walk()
        return rows if self._assigned is None else self._with_split(rows, *self._assigned)

    def assign(self, fraction: float | None, seed: int) -> Images:
        """The same images, each with the split that `assign_split` gives it; as they are without a fraction.

        Iterating then raises a UserError if they have splits of their own.
        """
        return self if fraction is None else replace(self, _assigned=(fraction, seed))

    def check_outside(self, out: Folder) -> None:
        """Raise UserError if what is written to a folder would be found among the images."""
        inside = f"{out.path}/".startswith(f"{self.root.path}/") and out.filesystem == self.root.filesystem
        if inside and self._start.is_folder:
            raise UserError(f"--out {out.uri} lies among the images: choose a folder beside {self.root.uri}")

    def _with_split(self, rows: Iterator[Listed], fraction: float, seed: int) -> Iterator[Listed]:
        for row in rows:
            if row.split is not None:
                raise UserError(
                    f"--split {fraction:g} given, but the images have splits already ({row.split}): "
                    "leave --split away, or give one of the folders"
                )
            yield row._replace(split=assign_split(row.path, fraction, seed))

    def _is_archive(self) -> bool:
        """Whether the Parquet file that was given has images in it."""
        place = self.root.join(self._start.path)
        try:
            return filetypes.is_archive(place) and open_archive(self.root, self._start.path) is not None
        except (Damaged, OSError, UnicodeError) as error:
            raise UserError(f"cannot read the table {place!r}: {_why(error)}") from error

    def _walk(self) -> Iterator[Listed]:
        found, others, extensions = False, 0, set[str]()
        for image in self._all():
            if isinstance(image, Listed):
                found = True
                yield image
            else:
                others += 1
                if len(extensions) < 8:
                    extensions.add(posixpath.splitext(image)[1] or "(none)")
        self.others = others
        if not found:
            raise UserError(
                f"no image in {self.root.uri!r}: found {others} other files"
                f"{', extensions ' if others else ''}{', '.join(sorted(extensions))};\n"
                f"expected {' '.join(IMAGE_SUFFIXES)}, with or without a folder per class, or archives"
            )

    def _all(self) -> Iterator[Listed | str]:
        """The images, and the names of what is passed over."""
        for found in walk(self.root, self._start, self._archived):
            if not isinstance(found, Entry):
                yield found
            elif filetypes.is_image(found.path):
                yield self._listed(found)
            elif filetypes.is_compressed(found.path):
                raise _unpack(self.root.join(filetypes.text(found.path)))
            else:
                yield filetypes.text(found.path)

    def _archived(self, entry: Entry) -> Iterator[Listed | str]:
        """The images in a tar or Parquet file, and the names of what is passed over."""
        archive = self._listed(entry)
        between = ARCHIVE_SUFFIXES[posixpath.splitext(entry.path)[1].lower()]
        split = archive.split
        if split is None and self._start.is_folder:
            split = filetypes.split_of(posixpath.basename(archive.path))
        try:
            opened = open_archive(self.root, entry.path)
            for found in [archive.path] if opened is None else opened.images():
                if isinstance(found, Found):
                    yield archive._replace(
                        path=f"{archive.path}{between}{found.name}",
                        split=found.split or split,
                        label=found.label or archive.label,
                        size=found.size,
                        offset=found.offset,
                    )
                else:
                    yield found
        except (Damaged, OSError, UnicodeError) as error:
            raise UserError(
                f"cannot list the images in {self.root.join(archive.path)!r}: {_why(error)};\n"
                "they cannot be counted: write it anew, or move it away"
            ) from error

    def _listed(self, entry: Entry) -> Listed:
        path = filetypes.text(entry.path)
        folders = path.split("/")[:-1]
        split = SPLITS.get(folders.pop(0).lower()) if self._has_splits and folders else None
        label = folders[0] if folders else None
        if entry.info is not None:
            return Listed(path, split, label, entry.info.size, entry.info.mtime)
        return Listed(path, split, label, *self.root.status(entry.path))

    def _find_splits(self) -> bool:
        names = [entry.path[:-1] for entry in below(self.root, self._start) if entry.is_folder]
        splits = [name for name in names if name.lower() in SPLITS]
        classes = [name for name in names if name.lower() not in SPLITS]
        if classes and any(name.lower() == "train" for name in splits):
            raise UserError(
                f"{self.root.uri!r} mixes splits {splits} with {len(classes)} other folders {classes[:5]};\n"
                "expected only splits, or only classes: move the others away, or into the splits"
            )
        return bool(splits) and not classes

    def _rows(self) -> Iterator[Listed]:
        from tlray.images import table

        for row in table.rows(self.root.filesystem, self.root.join(self._start.path)):
            yield Listed(*row, None, None)


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


def _unpack(place: str) -> UserError:
    return UserError(
        f"{place!r} is a compressed tar file, in which no image can be reached without all before it:\n"
        "unpack it to a .tar or to files (images are compressed already), or move it away"
    )


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
