"""Faults of a storage stop the job; faults of a file are those of the file; no answer is used in part."""

import errno
import os

import fsspec
import pytest

from tlray.core import checked_file
from tlray.core.checked_file import CheckedFile, NotAFile, Replaced, StorageError
from tlray.core.storage import Folder
from tlray.images.listing import Images
from tlray.images.reader import Reader


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENFILE])
def test_a_fault_of_a_disk_or_its_network(number, tmp_path, monkeypatch):
    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(checked_file.os, "stat", fail)
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}/a now: {os.strerror(number)}; mend"):
        CheckedFile(Folder.open(tmp_path), "a")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.EUCLEAN])
def test_a_fault_of_one_file(number, tmp_path, monkeypatch):
    def fail(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(checked_file.os, "stat", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        CheckedFile(Folder.open(tmp_path), "a")


class UnauthorizedError(Exception):
    """An error as client libraries of stores raise it, which is no OSError."""


@pytest.mark.parametrize(
    "error", [PermissionError("403"), TimeoutError("late"), OSError("503"), UnauthorizedError("401")]
)
def test_a_store_of_fsspec_that_refuses(error, monkeypatch):
    folder = Folder.open("memory://refusing")
    folder.write("a", b"bytes")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(fsspec.filesystem("memory"), "open", fail)
    with pytest.raises(StorageError, match=str(error)):
        CheckedFile(folder, "a")
    with pytest.raises(FileNotFoundError):
        Folder.open("memory://refusing").read("b")


@pytest.mark.parametrize("uri", ["memory://checked", "local"])
def test_whole_reads_of_one_version(uri, tmp_path):
    folder = Folder.open(tmp_path if uri == "local" else uri)
    data = bytes(range(256)) * 5
    folder.write("a", data)
    with CheckedFile(folder, "a", size=len(data)) as file:
        # A mark of each value at the end of a buffer is told from the last byte.
        assert b"".join(file.read_at(length, 0)[-1:] for length in range(1, 300)) == data[:299]
        assert (file.read_at(99, len(data) - 9), file.read_at(9, 5000)) == (data[-9:], b"")
        file.check()
        with (
            open(f"{folder.path}/a", "ab")
            if uri == "local"
            else folder.filesystem.open_output_stream(folder.join("a")) as stream
        ):
            stream.write(b"more")
        file.read_at(5, 0)
        with pytest.raises(Replaced):
            file.check()
    with pytest.raises(Replaced, match="bytes, and had 1280 when it was listed"):
        CheckedFile(folder, "a", size=len(data))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(NotAFile, match="a folder, pipe or device"):
            CheckedFile(Folder.open(tmp_path), name)


def test_images_whose_folder_is_gone_are_not_all_bad(tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"x")
    images = Images.open(str(folder))
    (row,) = images
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"the folder of the images, .*mounted, is gone"):
        Reader(images.root)(*row.place)
