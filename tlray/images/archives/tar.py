"""Images in a tar file, as WebDataset and others write it. Nothing is ever unpacked.

Python's `tarfile` parses each header, but it does not read the file, because it trusts the sizes in headers,
which may be hostile.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import ArchivedImage, Damaged, Duplicates, HashIndex, ReadAheadFile
from tlray.images.archives.samples import Samples, sample_names
from tlray.images.bad_image import MAX_BYTES, BadImage
from tlray.images.conventions import is_hidden

_BLOCK = tarfile.BLOCKSIZE
_MAX_HEADER = 1 << 20
"""The most bytes in front of one member's data, with extended headers such as a long name."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class _Member(NamedTuple):
    name: str
    kind: bytes
    """A type of `tarfile`; empty for a sparse file, whose bytes are not in one piece."""
    offset: int
    """The offset of its first header."""
    data: int
    """The offset of its bytes."""
    size: int

    @property
    def end(self) -> int:
        return self.data + (0 if self.kind in _WITHOUT_DATA else -(-self.size // _BLOCK) * _BLOCK)


class Tar:
    """An open tar file."""

    has_names = True

    def __init__(self, root: Folder, path: str, label_column: str | None = None) -> None:
        self._file = ReadAheadFile(root, path)
        self.file = self._file.file
        self._offsets = HashIndex()
        self._samples = Samples(label_column)
        self.columns: Mapping[str, list[str]] = self._samples.columns
        self.warnings: Mapping[str, str] = self._samples.warnings

    @property
    def has_labels(self) -> bool:
        return self._samples.has_labels

    def images(self) -> Iterator[ArchivedImage | str]:
        names = Duplicates()
        for member in self._members():
            if any(map(is_hidden, member.name.split("/"))):
                yield member.name
            elif filetypes.is_listed(member.name):
                names.add(member.name)
                size = member.size if member.kind in _FILES else None
                yield from self._samples.add(ArchivedImage(member.name, member.offset, size))
            else:
                yield from self._samples.add_other(member.name, partial(self._text, member))
        yield from self._samples.finish()
        duplicate = names.find(name for name, _ in self._listed())
        if duplicate is not None:
            raise Damaged(f"it has the member {duplicate!r} twice")
        late = self._samples.late()
        for name, _ in self._listed() if late else ():
            if not late.isdisjoint(map(hash, sample_names(name))):
                raise Damaged(f"the label of {name!r} is too far from it: sort the members by name")

    def _listed(self) -> Iterator[tuple[str, int]]:
        """The names and offsets of all images."""
        for member in self._members():
            if filetypes.is_listed(member.name) and not any(map(is_hidden, member.name.split("/"))):
                yield member.name, member.offset

    def read(self, name: str, offset: int | None) -> bytes:
        # The name decides, because the file may have been written anew since it was listed.
        for start in self._offsets.lookup(name, offset, self._listed()):
            member = None
            with suppress(Damaged):
                member = self._member(start)
            if member is not None and member.name == name:
                return self._bytes(member)
        raise FileNotFoundError(name)

    def _bytes(self, member: _Member) -> bytes:
        if member.kind not in _FILES:
            raise BadImage("read", "NotAFile", "a link, device or sparse file in the archive, not a file")
        if member.size > MAX_BYTES:
            raise BadImage("read", "FileTooLarge", f"{member.size} bytes, above {MAX_BYTES}")
        header = self._file.read_at(member.offset, member.data - member.offset)
        length = len(header) + member.size
        # One request reads header and bytes, because the file could be replaced between two requests.
        data = self._file.read_at(member.offset, length)
        if not data.startswith(header) or len(data) < length:
            raise Damaged("it was replaced while it was read, or is cut off")
        return data[len(header) :]

    def _text(self, member: _Member, limit: int) -> bytes:
        """The bytes of a member; ValueError if they are more than `limit`, or it is not a file."""
        if member.kind not in _FILES or member.size > limit:
            raise ValueError
        return self._file.read_at(member.data, member.size)

    def _members(self) -> Iterator[_Member]:
        """All members except folders."""
        offset = 0
        while (member := self._member(offset)) is not None:
            if member.end > self._file.size:
                raise Damaged(f"it is cut off: {member.name!r} extends beyond its end")
            offset = member.end
            if member.kind != tarfile.DIRTYPE:
                yield member

    def _member(self, offset: int) -> _Member | None:
        """The member whose headers begin at an offset; None at the end mark."""
        start, long_name, long_size, sparse = offset, None, None, False
        while True:
            block = self._file.read_at(offset, _BLOCK)
            if len(block) < _BLOCK:
                raise Damaged("it is cut off: its end mark is missing")
            if not any(block):
                self._check_end(offset)
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError) as error:
                raise Damaged(f"no header of a tar file at byte {offset} ({error})") from error
            offset += _BLOCK
            size = info.size if long_size is None else long_size
            if min(size, info.size) < 0:
                raise Damaged(f"a size of {min(size, info.size)} bytes at byte {start}")
            if info.type not in _EXTENDED:
                name = filetypes.valid_text(long_name or info.name).partition("\0")[0]
                while name.startswith("./"):
                    name = name[2:]
                kind = b"" if sparse or info.type == tarfile.GNUTYPE_SPARSE else info.type
                return _Member(name, kind, start, offset, size)
            if info.size > _MAX_HEADER or offset - start > _MAX_HEADER:
                raise Damaged(f"a header of more than {_MAX_HEADER} bytes at byte {start}")
            data = self._file.read_at(offset, info.size)
            offset += -(-info.size // _BLOCK) * _BLOCK
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = data.decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                for key, value in _records(data):
                    if key == b"path":
                        long_name = value.decode("utf-8", "surrogateescape")
                    elif key == b"size":
                        long_size = int(value) if value.isdigit() and len(value) < 20 else -1
                    sparse |= key.startswith(b"GNU.sparse.")

    def _check_end(self, offset: int) -> None:
        """Check that only zeros follow the end mark; the images of a second archive there would be lost."""
        rest = self._file.size - offset
        if rest > _MAX_HEADER or self._file.read_at(offset, rest).strip(b"\0"):
            raise Damaged(f"it continues behind its end mark at byte {offset}, as joined archives do")


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a pax header, whose lines are `LENGTH KEY=VALUE`."""
    start = 0
    while start < len(data) and data[start]:
        space = data.find(b" ", start, start + 20)
        length = data[start:space] if space > 0 else b""
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : max(end - 1, 0)].partition(b"=")
        if end <= space or end > len(data) or not equals:
            raise Damaged("a pax header that cannot be read")
        yield key, value
        start = end
