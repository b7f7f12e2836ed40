"""Lists the images at a path or URI, each with its split and label."""

from __future__ import annotations

import copy
import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from pyarrow import fs

from tlray.core.errors import UserError
from tlray.core.storage import Folder, StrPath
from tlray.images import conventions, filetypes
from tlray.images.archives.base import Damaged, compressed
from tlray.images.conventions import ColumnNames
from tlray.images.filetypes import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, TABLE_SUFFIXES
from tlray.images.layout import Layout
from tlray.images.reader import Place, open_archive
from tlray.images.table import Metadata, Table
from tlray.images.walk import Entry, walk

_EXPECTED = (
    "a folder, an image, a .tar or .parquet of images, or a table of paths: .parquet, .csv, .tsv or .jsonl"
)


class Listed(NamedTuple):
    """An image in a listing; its bytes have not been read."""

    path: str
    """The path relative to the root of the images, with forward slashes; it identifies the row."""
    split: str | None
    label: str | None
    size: int | None
    """Size in bytes; None if storage does not report it, and for the rows of a table."""
    modified: datetime | None
    """When the image's file, or the archive that contains it, was last changed."""
    offset: int | None = None
    """The offset of an image in an archive; see `tlray.images.archives.base.ArchivedImage`."""

    @property
    def place(self) -> Place:
        """What a `tlray.images.reader.Reader` needs to read the image."""
        return Place(self.path, self.offset, self.modified, self.size)


_TOP, _ANY = Entry(""), ColumnNames()


@dataclass
class Images:
    """The images of a folder, sorted by path; of an archive or a table, in its order; or a single image.

    In a folder, each tar file and each Parquet file with images is replaced by its images, whose paths are
    `shard.tar/member`, `file.parquet#key`, or `file.parquet#row` if the file has no column of keys. The split
    and the label of an archived image come from the first of these that has one: the image itself (the `.cls`
    member of its sample, or the columns of its row), its folder in a tar file, the folders above the archive,
    for the label also the name of a tar file if each class has one.
    If none of them has a split, a split in the archive's name counts, as in `train-00000-of-00005.parquet`.

    Iteration streams the images. It raises a UserError for a folder that cannot be listed and, at the end,
    if there was no image.
    """

    root: Folder
    """The folder to which all paths are relative."""
    passed_over: Counter[str] = field(default_factory=Counter, init=False)
    """The files that are no images, by suffix in lower case or "(none)"; each iteration counts anew."""
    unread: Counter[str] = field(default_factory=Counter, init=False)
    """The images of kinds that tlray cannot read, by suffix."""
    unread_classes: Counter[tuple[str | None, str | None, str]] = field(default_factory=Counter, init=False)
    """The same by split, label and suffix, for files in folders."""
    hidden: int = field(default=0, init=False)
    """The files and folders whose name begins with a dot, and the folders that systems make."""
    columns: dict[str, str] = field(default_factory=dict, init=False)
    """The columns of a table or of archives that the "path", "label" and "split" come from."""
    warnings: list[str] = field(default_factory=list, init=False)
    """What is doubtful, judging from the names; each is a sentence that says what to type instead."""
    _start: Entry = _TOP
    _given: ColumnNames = _ANY
    """The columns that the user names."""
    _table: Table | None = None
    """The table whose rows are the images, which may lie anywhere."""
    _warned: set[str] = field(default_factory=set)
    """The kinds of warnings about archives that were given."""
    _layout: Layout = field(default_factory=Layout)
    _metadata: Metadata = field(default_factory=Metadata)
    _assigned: tuple[float, int] | None = None
    """The fraction and the seed of the split that `assign` gives."""

    @classmethod
    def open(cls, uri: StrPath, columns: ColumnNames = _ANY) -> Images:
        """Find out how the images at a path or URI are organised. The user may name columns of tables.

        If all folders at the top are named like splits, in upper or lower case, the folders below them are
        the classes. Otherwise the folders at the top are the classes.

        Raises:
            UserError: the path does not exist or is of no accepted kind; or it is a table that
                `tlray.images.table.Table.open` refuses.
        """
        uri = os.fspath(uri)
        given = Folder.open(uri)
        info = _info(given)
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{uri!r} does not exist, or is not accessible: expected {_EXPECTED}")
        if info.type == fs.FileType.Directory:
            images = cls(given, _given=columns)
        else:
            folder, name = posixpath.split(given.path)
            root = Folder(given.filesystem, folder, posixpath.dirname(given.uri))
            images = cls(root, Entry(name, None if given.is_local else info), columns)
        if filetypes.valid_text(images.root.path) != images.root.path:
            raise UserError(f"the folder {images.root.path!r} has a name that is not UTF-8: rename it")
        if images._start.is_folder:
            images._layout = Layout.open(images.root, images._start)
            images.warnings = images._layout.warnings
        elif filetypes.is_compressed(images._start.path):
            raise compressed(uri)
        elif images._start.path.lower().endswith(TABLE_SUFFIXES):
            images._open_table()
        elif filetypes.is_unread(images._start.path):
            remedy = filetypes.remedy(posixpath.splitext(uri)[1])
            raise UserError(f"{uri!r} is an image of a kind that tlray cannot read: {remedy}")
        elif not images._start.is_container and not filetypes.is_image(images._start.path):
            raise UserError(f"{uri!r} has no extension of an image, archive or table: expected {_EXPECTED}")
        return images

    def _open_table(self) -> None:
        """Open the given file as a table, unless it contains images."""
        name = self._start.path
        try:
            if filetypes.is_archive(name) and open_archive(self.root, name, self._given) is not None:
                return
        except (Damaged, OSError, UnicodeError) as error:
            raise UserError(f"cannot read the table {self.root.join(name)!r}: {_reason(error)}") from error
        self._table = Table.open(self.root, name, self._given)
        self._note(self._table.columns, self._table.warnings)

    def __iter__(self) -> Iterator[Listed]:
        for counter in (self.passed_over, self.unread, self.unread_classes):
            counter.clear()
        self.hidden = 0
        table = self._table
        rows = self._walk() if table is None else (Listed(*row, None, None) for row in table.rows())
        return rows if self._assigned is None else self._with_split(rows, *self._assigned)

    def assign(self, fraction: float | None, seed: int) -> Images:
        """The same images, with splits from `assign_split`. A fraction of None changes nothing.

        Iteration then raises a UserError if the images have splits already.
        """
        images = copy.copy(self)
        images._assigned = None if fraction is None else (fraction, seed)
        return images

    def check_outside(self, out: Folder, name: str = "--out") -> None:
        """Raise UserError if a job's output, given by this option, would become part of the images."""
        for folder in self._layout.folders(self.root) if self._start.is_folder else ():
            if folder.contains(out):
                raise UserError(
                    f"{name} {out.uri} lies among the images: choose a place outside {folder.uri}"
                )

    def _with_split(self, rows: Iterator[Listed], fraction: float, seed: int) -> Iterator[Listed]:
        for row in rows:
            if row.split is not None:
                raise UserError(
                    f"--split {fraction:g} given, but the images have splits already ({row.split}): "
                    "leave out --split, or give the folder of one split"
                )
            yield row._replace(split=assign_split(row.path, fraction, seed))

    def _walk(self) -> Iterator[Listed]:
        count = 0
        self._metadata = Metadata()
        for entry in walk(self.root, self._start, self._open_archive):
            image = entry if isinstance(entry, Listed) else self._image(entry)
            if image is not None:
                count += 1
                yield image
        yield from (Listed(*row, None, None) for row in self._metadata.unmet())
        self._given.check_used(self.columns, self.root.uri)
        if not count:
            others = self.passed_over + self.unread
            remedies = (f"{suffix}: {filetypes.remedy(suffix)}; " for suffix in sorted(self.unread))
            raise UserError(
                f"no image in {self.root.uri!r}: found {others.total()} other files"
                f"{', extensions ' if others else ''}{', '.join(sorted(others)[:8])};\n{''.join(remedies)}"
                f"expected {' '.join(IMAGE_SUFFIXES)}, with or without a folder per class, or archives"
            )

    def _image(self, file: Entry | str) -> Listed | None:
        """The image in a file; None for any other file or a member of an archive, which are counted."""
        path = filetypes.valid_text(file if isinstance(file, str) else file.path)
        suffix = posixpath.splitext(path)[1].lower() or "(none)"
        names = path.split("/") if isinstance(file, str) else []
        if any(map(conventions.is_hidden, names)) or (isinstance(file, Entry) and file.hidden):
            self.hidden += 1
        elif isinstance(file, Entry) and filetypes.is_image(path):
            return self._listed(file)
        elif isinstance(file, Entry) and filetypes.is_compressed(path):
            raise compressed(self.root.join(path))
        elif filetypes.is_unread(path):
            self.unread[suffix] += 1
            meaning = self._metadata.meaning(path, *self._layout.meaning(path), met=False)
            self.unread_classes[*meaning, suffix] += 1
        else:
            self.passed_over[suffix] += 1
        return None

    def _open_archive(self, entry: Entry) -> Iterator[Listed | str]:
        """The images in a tar or Parquet file, and the names of its other files; none if it is metadata."""
        table = self._metadata.read(self.root, entry.path, self._given) if entry.is_metadata else None
        if table is not None:
            self._note(table.columns, table.warnings)
            return
        if not filetypes.is_archive(entry.path):
            self._note({}, [f"{entry.path} gives no labels, because it has no column file_name"])
            yield entry.path
            return
        row = self._listed(entry)
        separator = ARCHIVE_SUFFIXES[posixpath.splitext(entry.path)[1].lower()]
        split = row.split
        if split is None and self._start.is_folder:
            split = conventions.split_in(posixpath.basename(row.path))
        try:
            archive = open_archive(self.root, entry.path, self._given)
            if archive is None:
                yield row.path
                return
            self._note(archive.columns)
            for image in archive.images():
                if isinstance(image, str):
                    yield image
                    continue
                path, label = f"{row.path}{separator}{image.name}", image.label
                label = row.label if label is None else label
                if label is None and not archive.has_labels and entry.class_name:
                    label, self.columns["label"] = entry.class_name, "the names of the tar files"
                yield Listed(
                    path, image.split or split, label or None, image.size, row.modified, image.offset
                )
            archive.file.check()
            self._note(archive.columns)
            for kind, warning in archive.warnings.items():
                if kind not in self._warned:
                    self._warned.add(kind)
                    self.warnings.append(f"{row.path}: {warning}")
        except (Damaged, OSError, UnicodeError) as error:
            raise UserError(
                f"cannot list the images in {self.root.join(row.path)!r}: {_reason(error)};\n"
                "images or labels would be missing: repair the file, or move it away"
            ) from error

    def _listed(self, entry: Entry) -> Listed:
        path = filetypes.valid_text(entry.path)
        meaning = self._layout.meaning(path)
        if not entry.is_container:
            meaning = self._metadata.meaning(path, *meaning)
        if entry.info is not None:
            return Listed(path, *meaning, entry.info.size, entry.info.mtime)
        return Listed(path, *meaning, *self.root.status(entry.path))

    def _note(self, columns: Mapping[str, list[str]], warnings: Iterable[str] = ()) -> None:
        """Record the columns of a table or archive, the one that is read first, and what is doubtful."""
        lines = [*warnings, *conventions.doubts(columns, self.columns)]
        self.columns |= {content: names[0] for content, names in columns.items()} | self.columns
        self.warnings += [line for line in lines if line not in self.warnings]


def _info(given: Folder) -> fs.FileInfo:
    if given.is_local:
        # A broken link counts as a file: it is listed, and reading it records what is wrong.
        kind = fs.FileType.File if os.path.lexists(given.path) else fs.FileType.NotFound
        return fs.FileInfo("", fs.FileType.Directory if os.path.isdir(given.path) else kind)
    try:
        return given.filesystem.get_file_info(given.path)
    except OSError as error:
        raise UserError(f"cannot reach {given.uri!r}: {error}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def assign_split(path: str, fraction: float, seed: int) -> str:
    """Choose 'train' with probability `fraction`, else 'test', from the path and the seed alone.

    A path always gets the same split. A larger fraction only moves paths from test to train.
    """
    # 48 bits are exact in a float, so a fraction of 1 puts all paths into train.
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=6).digest()
    return "train" if int.from_bytes(digest, "big") / 2**48 < fraction else "test"
