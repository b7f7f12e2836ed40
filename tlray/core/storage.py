"""Folders and files on local disks, on s3://, gs://, and on everything else that pyarrow or fsspec open."""

from __future__ import annotations

import errno
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
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from tlray.core import private
from tlray.core.errors import UserError
from tlray.core.text import without_credentials

_RETRIES = 8
"""Repetitions, within 7 seconds, of a request that S3 refuses or does not answer: a busy bucket must not turn
good images into error rows. By default a pyarrow file system in a task retries only twice within a second."""

StrPath = str | os.PathLike[str]
"""A local path, or a URI as text."""


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary file of tlray, which a killed command leaves behind."""
    # `Folder.writing`, `nodes.check` and a listing that is stopped make such files.
    return re.fullmatch(r"\.(.+\.[0-9a-f]{8}|tlray-.+|stopped)\.tmp", name) is not None


@dataclass(frozen=True)
class Folder:
    """A folder, small enough to be sent to every task. Writing its first file creates it."""

    filesystem: fs.FileSystem
    path: str
    """The absolute path with forward slashes, without the scheme."""
    uri: str
    """The path or URI as the user gave it, without credentials; a local path is made absolute."""

    @classmethod
    def open(cls, uri: StrPath) -> Folder:
        """Open the folder at a local path or URI.

        Raises:
            UserError: no installed package opens such a URI, or its server does not answer.
        """
        uri = os.fspath(uri)
        if "://" not in uri:
            path = os.path.abspath(uri)
            return cls(fs.LocalFileSystem(), path, path)
        try:
            # People write spaces and umlauts into URIs, which do not allow them.
            filesystem, path = fs.FileSystem.from_uri(quote(uri, safe=string.punctuation))
        except OSError as error:  # E.g. hdfs:// without Java, or an unknown bucket.
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot open {without_credentials(uri)!r}: {reason}") from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError):
            import fsspec

            try:
                remote, path = fsspec.core.url_to_fs(uri)
            except (ValueError, ImportError, OSError) as error:
                raise UserError(f"cannot open {without_credentials(uri)!r}: {error}") from error
            if (shown := without_credentials(path)) != path and "***" in shown:
                raise UserError(
                    f"{shown}: signed URIs are not supported, because names of images would contain the "
                    "signature: give the URI without it, and the credentials in the environment"
                ) from None
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(remote))
        return cls(filesystem, path.rstrip("/"), without_credentials(uri).rstrip("/"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        filesystem = state["filesystem"]
        if filesystem.type_name == "s3":  # Pickle does not keep the number of retries.
            filesystem = private.with_retries(filesystem, _RETRIES)
        self.__dict__.update(state, filesystem=filesystem)

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def join(self, name: str) -> str:
        """The path of a file in this folder; an absolute name is returned unchanged."""
        return posixpath.join(self.path, name)

    def child(self, name: str) -> Folder:
        return Folder(self.filesystem, self.join(name), posixpath.join(self.uri, name))

    def contains(self, other: Folder) -> bool:
        """Whether a folder or file is this folder or lies in it, by whatever links and spelling."""
        if not (self.is_local and other.is_local):
            kinds = {folder.filesystem.type_name for folder in (self, other)}
            return len(kinds) == 1 and f"{other.path}/".startswith(f"{self.path}/")
        if not os.path.exists(self.path):
            return False
        real = Path(os.path.realpath(other.path))
        # A file system that ignores case has the same folder under several names.
        return any(path.exists() and path.samefile(self.path) for path in (real, *real.parents))

    def exists(self, name: str = "") -> bool:
        if self.is_local:
            return os.path.lexists(self.join(name) if name else self.path)  # A broken link exists too.
        return bool(self._info(name).type != fs.FileType.NotFound)

    def is_file(self, name: str = "") -> bool:
        return bool(self._info(name).type == fs.FileType.File)

    def status(self, name: str) -> tuple[int | None, datetime | None]:
        """The size of a file in bytes and the time of its last change; None for either if it is unknown."""
        if not self.is_local:
            info = self._info(name)
            return info.size, info.mtime
        try:
            stat = os.stat(self.join(name))
            return stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)
        except (OSError, ValueError, OverflowError):  # A broken link, or a date after the year 9999.
            return None, None

    def names(self, name: str = "") -> list[str]:
        """The sorted names of the files and folders directly in a folder; empty if it does not exist."""
        selector = fs.FileSelector(self.join(name) if name else self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def walk(self, name: str) -> list[str]:
        """The sorted names of all files at any depth in a folder; empty if it does not exist."""
        selector = fs.FileSelector(self.join(name), recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        files = [info.path for info in infos if info.type == fs.FileType.File]
        return sorted(posixpath.relpath(path, self.path) for path in files)

    def read(self, name: str) -> bytes:
        """Read one file; raises OSError if it is missing or cannot be read."""
        with self.filesystem.open_input_stream(self.join(name), compression=None) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file; readers never see a part of it."""
        with self.writing(name) as stream:
            stream.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a stream whose file appears under its name only if the block ends without an error.

        A local file is written under a temporary name, synced and renamed, and then its folder is synced. For
        an object store the bytes are first collected in a local temporary file: pyarrow cannot abort an
        upload, and completes a half one when its stream is closed or garbage-collected.
        """
        target = self.join(name)
        if not self.is_local:
            # A thread uploads, because Ctrl-C interrupts the main one. fs.copy_files would lose errors.
            with tempfile.TemporaryFile() as file, ThreadPoolExecutor(1) as pool:
                yield file
                pool.submit(self._upload, file, target).result()
            return
        _make_folders(os.path.dirname(target))
        temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise

    def _upload(self, file: IO[bytes], target: str) -> None:
        file.seek(0)
        self.filesystem.create_dir(posixpath.dirname(target), recursive=True)
        with self.filesystem.open_output_stream(target, compression=None) as stream:
            shutil.copyfileobj(file, stream, 1 << 20)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this folder against other commands until the block or this process ends.

        A folder that does not exist is created, and removed again if it stays empty. Object stores have no
        locks: there, two commands that do the same job write the same files.

        Raises:
            UserError: another command is writing to the folder, or it cannot be created.
        """
        if not self.is_local:
            yield
            return
        existed = os.path.isdir(self.path)
        try:
            _make_folders(self.path)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UserError(f"cannot write to {self.uri}: {error.strerror}") from error
        try:
            with suppress(OSError):  # Some network file systems have no locks.
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"another command is writing to {self.uri}: wait for it, or choose another folder"
                    ) from error
            yield
        finally:
            os.close(descriptor)
            if not existed:
                with suppress(OSError):  # The folder is not empty.
                    os.rmdir(self.path)

    def sweep(self, name: str = "") -> None:
        """Remove the temporary files that killed writers left directly in a folder."""
        for file in filter(is_temporary, self.names(name)):
            self.remove(posixpath.join(name, file))

    def remove_empty(self) -> None:
        """Remove this folder if it is empty."""
        if not self.names():
            self.remove()

    def remove(self, name: str = "") -> None:
        """Remove a file, or a folder with everything in it; do nothing if it does not exist."""
        info = self._info(name)
        if info.type == fs.FileType.Directory:
            self.filesystem.delete_dir(info.path)
        elif info.type == fs.FileType.File:
            self.filesystem.delete_file(info.path)

    def _info(self, name: str) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.join(name) if name else self.path)


def _make_folders(path: str) -> None:
    """Create a folder and those above it, so that they survive a power cut."""
    if not os.path.isdir(path):
        _make_folders(os.path.dirname(path))
        with suppress(FileExistsError):  # Another process may have been faster, or it is a file.
            os.mkdir(path)
        _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    """Write the names in a folder to the disk, as far as its file system offers that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
