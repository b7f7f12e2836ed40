"""Images in a tar file, as WebDataset and others write it. Nothing is ever unpacked.

Each header is read by Python's `tarfile`, but not the file as a whole: there it believes what a hostile
header says of its size.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from tlray.core.storage import Folder
from tlray.images import filetypes
from tlray.images.archives.base import Damaged, Duplicates, File, Found, HashIndex
from tlray.images.bad_image import MAX_BYTES, BadImage

_BLOCK = tarfile.BLOCKSIZE
_MOST_HEADER = 1 << 20
"""Bytes of what may stand before one member: a long name, and the like."""
_MOST_LABEL = 1024
"""Bytes of a .cls member."""
_MOST_HELD = 1000
"""Images of one sample that wait for its label."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip


class _Member(NamedTuple):
    name: str
    kind: bytes
    """A type of `tarfile`'s; empty for a sparse file, whose bytes are not in one piece."""
    offset: int
    """Of its first header."""
    data: int
    """Offset of its bytes."""
    size: int

    @property
    def end(self) -> int:
        return self.data + (0 if self.kind in _WITHOUT_DATA else -(-self.size // _BLOCK) * _BLOCK)

    @property
    def sample(self) -> str:
        """As WebDataset has it: the name up to the first dot after the folders."""
        folder, name = posixpath.split(self.name)
        return posixpath.join(folder, name.partition(".")[0])


class Tar:
    """An open tar file."""

    has_names = True

    def __init__(self, root: Folder, path: str) -> None:
        self._file = File(root, path)
        self._places: HashIndex | None = None

    def images(self) -> Iterator[Found | str]:
        seen = Duplicates()
        for found in self._samples():
            if isinstance(found, Found):
                seen.add(found.name)
            yield found
        again = (member.name for member in self._members() if _is_image(member))
        if (name := seen.twice(again)) is not None:
            raise Damaged(f"it has the member {name!r} twice")

    def _samples(self) -> Iterator[Found | str]:
        """The images with the label of their sample, whose members follow each other."""
        sample, label, late = None, None, False
        held: list[Found] = []
        for member in self._members():
            if member.sample != sample:
                yield from (_labelled(image, label) for image in held)
                sample, label, late, held = member.sample, None, False, []
            if _is_image(member):
                size = member.size if member.kind in _FILES else None
                held.append(Found(member.name, member.offset, size))
                if len(held) > _MOST_HELD:
                    yield from (_labelled(image, label) for image in held)
                    late, held = True, []
            else:
                if member.kind in _FILES and member.name == f"{sample}.cls":
                    label = self._label(member)
                    if late and label:
                        raise Damaged(f"its member {member.name!r} comes too late after the images it names")
                yield member.name
        yield from (_labelled(image, label) for image in held)

    def read(self, name: str, offset: int | None) -> bytes:
        # The name decides, and not the place, since the archive may have been written anew.
        for place in chain(() if offset is None else (offset,), self._places_of(name)):
            member = self._named(name, place)
            if member is not None:
                return self._bytes(member)
        raise FileNotFoundError(name)

    def _bytes(self, member: _Member) -> bytes:
        if member.kind not in _FILES:
            raise BadImage("read", "NotAFile", "a link, device or sparse file in the archive, not a file")
        if member.size > MAX_BYTES:
            raise BadImage("read", "FileTooLarge", f"{member.size} bytes, above {MAX_BYTES}")
        header = self._file.at(member.offset, member.data - member.offset)
        length = len(header) + member.size
        whole = self._file.at(member.offset, length)
        # Header and bytes are of one answer: between two the archive may have been replaced.
        if not whole.startswith(header) or len(whole) < length:
            raise Damaged("it was replaced while it was read, or is cut off")
        return whole[len(header) :]

    def _named(self, name: str, offset: int) -> _Member | None:
        """The member that begins there, if it has this name."""
        try:
            member = self._member(offset)
        except Damaged:
            return None
        return member if member is not None and member.name == name else None

    def _places_of(self, name: str) -> Iterator[int]:
        if self._places is None:
            members = self._members()
            self._places = HashIndex((member.name, member.offset) for member in members if _is_image(member))
        yield from self._places.of(name)

    def _label(self, member: _Member) -> str | None:
        try:
            if member.size > _MOST_LABEL:
                raise ValueError
            return self._file.at(member.data, member.size).decode().strip() or None
        except ValueError as error:
            raise Damaged(f"its member {member.name!r} is no class: expected a short text") from error

    def _members(self) -> Iterator[_Member]:
        """All members but folders and hidden ones."""
        offset = 0
        while (member := self._member(offset)) is not None:
            if member.end > self._file.size:
                raise Damaged(f"it is cut off: {member.name!r} goes on behind its end")
            offset = member.end
            parts = [part for part in member.name.split("/") if part not in (".", "..")]
            if member.kind != tarfile.DIRTYPE and not any(map(filetypes.is_hidden, parts)):
                yield member

    def _member(self, offset: int) -> _Member | None:
        """The member whose headers begin there; None at the end mark."""
        start, long_name, long_size, sparse = offset, None, None, False
        while True:
            block = self._file.at(offset, _BLOCK)
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
                name = filetypes.text(long_name or info.name).partition("\0")[0]
                while name.startswith("./"):
                    name = name[2:]
                kind = b"" if sparse or info.type == tarfile.GNUTYPE_SPARSE else info.type
                return _Member(name, kind, start, offset, size)
            if info.size > _MOST_HEADER or offset - start > _MOST_HEADER:
                raise Damaged(f"a header of more than {_MOST_HEADER} bytes at byte {start}")
            data = self._file.at(offset, info.size)
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
        """See that nothing follows the end mark but zeros: archives that were joined would lose images."""
        rest = self._file.size - offset
        if rest > _MOST_HEADER or self._file.at(offset, rest).strip(b"\0"):
            raise Damaged(f"it goes on behind its end mark at byte {offset}, as if several were joined")


_EXTENDED = (
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def _is_image(member: _Member) -> bool:
    return filetypes.is_image(member.name)


def _labelled(image: Found, label: str | None) -> Found:
    """The image with the label of its sample; without one that of its folder in the archive."""
    if label is None:
        folders = [part for part in image.name.split("/")[:-1] if part not in ("", ".", "..")]
        label = folders[0] if folders else None
        if label is not None and label.lower() == "train":
            raise Damaged(f"it has splits in it ({image.name!r}): make one of each, named after its split")
    return image._replace(label=label)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a pax header, whose lines are `LENGTH KEY=VALUE`."""
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
