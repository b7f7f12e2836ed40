"""Parquet files that show their own damage: checksums of all pages, and one of the footer.

Parquet has checksums of pages, but none of the footer, which holds the names, types and numbers of rows. So
tlray's files have 12 more bytes just before the footer: a mark and the footer's CRC. Other readers skip them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from tlray.core.checked_file import CheckedFile
from tlray.core.errors import JobError
from tlray.core.storage import Folder

_MARK = b"tlrayCRC"
_END = 8
"""Bytes after the footer: its length in 4 bytes, and "PAR1"."""
_SEAL = len(_MARK) + 4
_TAIL = 1 << 16
"""Bytes at the end of a file that one request reads; few footers are longer."""


@contextmanager
def writer(stream: IO[bytes], schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file with checksums to a stream that can also be read; `options` are pyarrow's."""
    with pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True, **options) as writer:
        yield writer
    stream.seek(-_END, os.SEEK_END)
    start = stream.seek(-_END - int.from_bytes(stream.read(4), "little"), os.SEEK_END)
    footer = stream.read()
    stream.seek(start)
    stream.write(_MARK + crc32(footer).to_bytes(4, "little") + footer)


def write(folder: Folder, name: str, table: pa.Table) -> None:
    """Write a table as a Parquet file with checksums; it appears only when it is complete."""
    with folder.writing(name) as stream, writer(stream, table.schema) as file:
        file.write_table(table)


def open_file(source: pa.NativeFile | CheckedFile, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file of any origin; reading it verifies the checksums that it has.

    Raises:
        OSError, ArrowInvalid: the file is damaged; reading from it raises the same.
    """
    tail, size = b"", source.size()
    needed = min(size, _TAIL)
    while len(tail) < needed:
        tail = source.read_at(needed, size - needed)
        if len(tail) < needed:
            raise OSError(f"the file has ended {needed - len(tail)} bytes too early")
        needed = min(size, int.from_bytes(tail[-_END:-4], "little") + _END + _SEAL)
    seal, footer = tail[-needed : _SEAL - needed], tail[_SEAL - needed :]
    if seal.startswith(_MARK) and seal != _MARK + crc32(footer).to_bytes(4, "little"):
        raise pa.ArrowInvalid("the checksum of its footer does not match")
    metadata = pq.read_metadata(pa.BufferReader(tail))
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, **options)


@contextmanager
def reading(folder: Folder, name: str, remedy: str) -> Iterator[pq.ParquetFile]:
    """Open a file that tlray has written; an error in the block becomes a JobError that says the remedy."""
    path = folder.join(name)
    try:
        with folder.filesystem.open_input_file(path) as stream:
            yield open_file(stream)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise JobError(f"{path} cannot be read: {error}; if it is damaged, {remedy}") from error
