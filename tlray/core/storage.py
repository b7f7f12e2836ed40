"""Folders and files wherever they are: local paths, s3://, gs://, and all that pyarrow or fsspec open."""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
import shutil
import string
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from tlray.core import private
from tlray.core.errors import UserError

_RETRIES = 8
"""Of a request to S3 that is refused or not answered, in 7 seconds: a busy bucket must not make error
rows of good images. Pyarrow's own file system, once it has been sent to a task, retries twice in a second."""


StrPath = str | os.PathLike[str]
"""A local path, or a URI as text."""


@dataclass(frozen=True)
class Folder:
    """A folder on some file system; small enough to be sent to every task.

    The folder need not exist: it comes into being with its first file.
    """

    filesystem: fs.FileSystem
    path: str
    """Absolute, with forward slashes, without the scheme."""
    uri: str
    """As the user gave it, without the credentials of S3; local paths made absolute."""

    @classmethod
    def open(cls, uri: StrPath) -> Folder:
        """Find the file system of a path or URI.

        Raises:
            UserError: no installed package opens such a URI.
        """
        uri = os.fspath(uri)
        if "://" not in uri:
            path = os.path.abspath(uri)
            return cls(fs.LocalFileSystem(), path, path)
        try:
            # A space or an umlaut is no part of a URI, but people write them.
            filesystem, path = fs.FileSystem.from_uri(quote(uri, safe=string.punctuation))
        except OSError as error:  # hdfs:// without Java, a bucket that does not answer.
            raise UserError(f"cannot open {uri!r}: {str(error).splitlines()[0]}") from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError):
            import fsspec

            try:
                remote, path = fsspec.core.url_to_fs(uri)
            except (ValueError, ImportError, OSError) as error:
                raise UserError(f"cannot open {uri!r}: {error}") from error
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(remote))
        # Credentials are not written down with the URI.
        return cls(filesystem, path.rstrip("/"), re.sub("^s3://[^/@]+@", "s3://", uri).rstrip("/"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What pyarrow pickles of a file system does not say how patient it is.
        self.__dict__.update(state, filesystem=_patient(state["filesystem"]))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def join(self, name: str) -> str:
        """The path of a file in this folder; an absolute name stands for itself."""
        return posixpath.join(self.path, name)

    def child(self, name: str) -> Folder:
        return Folder(self.filesystem, self.join(name), posixpath.join(self.uri, name))

    def exists(self, name: str = "") -> bool:
        return bool(self._info(name).type != fs.FileType.NotFound)

    def is_file(self, name: str = "") -> bool:
        return bool(self._info(name).type == fs.FileType.File)

    def status(self, name: str) -> tuple[int | None, datetime | None]:
        """The size in bytes and the time of change of a file; None for what cannot be asked."""
        if not self.is_local:
            info = self._info(name)
            return info.size, info.mtime
        try:
            found = os.stat(self.join(name))
            return found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)
        except (OSError, ValueError, OverflowError):  # A link to nowhere, or a date after the year 9999.
            return None, None

    def names(self, name: str = "") -> list[str]:
        """The sorted names of the files and folders directly below; none if there is no such folder."""
        selector = fs.FileSelector(self.join(name) if name else self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def walk(self, name: str) -> list[str]:
        """The sorted names of all files below a folder; none if there is no such folder."""
        selector = fs.FileSelector(self.join(name), recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        files = [info.path for info in infos if info.type == fs.FileType.File]
        return sorted(posixpath.relpath(path, self.path) for path in files)

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        with self.filesystem.open_input_stream(self.join(name), compression=None) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        with self.writing(name) as stream:
            stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A stream whose file appears under its name only when the block ends well.

        Locally the bytes go to a temporary name, are synced and renamed. For an object store they
        are collected in a temporary file: an upload that is given up is completed all the same
        when pyarrow's stream is closed or collected, because it cannot be aborted.
        """
        target = self.join(name)
        if not self.is_local:
            # In a thread, because Ctrl-C is raised in the main one. Not by fs.copy_files: it loses errors.
            with tempfile.TemporaryFile() as whole, ThreadPoolExecutor(1) as pool:
                yield whole
                pool.submit(self._upload, whole, target).result()
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise

    def _upload(self, whole: IO[bytes], target: str) -> None:
        whole.seek(0)
        self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
        with self.filesystem.open_output_stream(target, compression=None) as stream:
            shutil.copyfileobj(whole, stream, 1 << 20)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from writing to this folder until the block ends, or this process does.

        It is made if it is not there, and removed again if it stays empty. Object stores have no
        locks: there two commands that do the same job write the same files.

        Raises:
            UserError: another command writes to it, or it cannot be made.
        """
        if not self.is_local:
            yield
            return
        was_there = os.path.isdir(self.path)
        try:
            os.makedirs(self.path, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot write to {self.uri}: {error.strerror}") from error
        try:
            with suppress(OSError):  # Some network file systems have no locks either.
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"another command is writing to {self.uri}: wait for it, or choose another folder"
                    ) from error
            yield
        finally:
            os.close(descriptor)
            if not was_there:
                with suppress(OSError):  # It is not empty.
                    os.rmdir(self.path)

    def sweep(self, name: str = "") -> None:
        """Remove the temporary files that writers left directly in a folder when they were killed."""
        for file in self.names(name):
            if file.startswith(".") and file.endswith(".tmp"):
                self.remove(posixpath.join(name, file))

    def remove_empty(self, name: str = "") -> None:
        """Remove a folder if there is nothing in it."""
        if not self.names(name):
            self.remove(name)

    def remove(self, name: str = "") -> None:
        """Remove a file or a folder with all it holds, if it is there."""
        info = self._info(name)
        if info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            self.filesystem.delete_file(info.path)

    def _info(self, name: str) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.join(name) if name else self.path)


def _patient(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same file system, if it is S3 with `_RETRIES`."""
    if filesystem.type_name != "s3":
        return filesystem
    return private.with_retries(filesystem, _RETRIES)
