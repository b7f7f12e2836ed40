"""Folders of every kind of storage; a file is there whole or not at all."""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tlray.core.errors import UserError
from tlray.core.storage import Folder


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """A folder that does not exist yet."""
    uris = {"memory": "memory://storage", "file": f"file://{tmp_path}/new", "local": f"{tmp_path}/new"}
    folder = Folder.open(uris[request.param])
    yield folder
    folder.remove()


def everything(folder: Folder) -> list[str]:
    """All files, the hidden and the temporary ones too."""
    gc.collect()  # A stream that was given up may still finish its file when it is collected.
    filesystem = fsspec.filesystem("file" if folder.is_local else "memory")
    return sorted(os.path.relpath(path, folder.path) for path in filesystem.find(folder.path))


# Opening


def test_what_is_local_and_what_is_not(tmp_path):
    assert Folder.open(str(tmp_path)).uri == str(tmp_path)
    for uri in (str(tmp_path), f"file://{tmp_path}/"):
        assert (Folder.open(uri).path, Folder.open(uri).is_local) == (str(tmp_path), True)
    folder = Folder.open("memory://bucket/deep/")  # fsspec opens what pyarrow does not.
    assert not folder.is_local
    assert folder.uri == "memory://bucket/deep"
    assert folder.path.endswith("bucket/deep")


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Folder.open("over/../where/")
    monkeypatch.chdir("/")
    folder.write("a", b"1")
    assert (tmp_path / "where" / "a").read_bytes() == b"1"
    assert folder.uri == str(tmp_path / "where")


@pytest.mark.parametrize(
    "uri", ["nosuch://bucket/x", "hdfs://host/x", "hf://datasets/x", "zip://x::/nowhere/at/all.zip"]
)
def test_a_uri_that_nothing_here_opens(uri):
    with pytest.raises(UserError) as caught:
        Folder.open(uri)
    assert uri in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("odd", ["with space", "100%", "ünï", "a:b", "new\nline", "#?&"])
def test_odd_names_of_local_folders(tmp_path, odd):
    folder = Folder.open(str(tmp_path / odd))
    folder.write("file", b"1")
    assert (tmp_path / odd / "file").read_bytes() == b"1"
    assert folder.names() == ["file"]


# Reading and writing


def test_what_is_written_is_read(folder):
    assert not folder.exists()
    assert folder.names() == []
    # A name is no reason to decompress.
    for name, data in (("deep/er/a", bytes(range(256))), ("deep/er/a", b""), ("a.gz", b"no gzip")):
        folder.write(name, data)
        assert folder.read(name) == data
    with pytest.raises(OSError, match="missing"):
        folder.read("missing")
    assert pickle.loads(pickle.dumps(folder)).read("a.gz") == b"no gzip"  # As it travels to other processes.


def test_what_is_there(folder):
    for name in ("b", "a", "sub/c", "sub/deep/d"):
        folder.write(name, b"1")
    assert folder.names() == ["a", "b", "sub"]
    assert folder.names("sub") == folder.child("sub").names() == ["c", "deep"]
    assert folder.names("missing") == []
    assert all(map(folder.exists, ("", "sub", "sub/c")))
    assert not folder.exists("sub/other")
    assert folder.is_file("sub/c")
    assert not any(map(folder.is_file, ("sub", "", "sub/c/below")))


def test_remove(folder):
    for name in ("keep", "file", "sub/deep/a"):
        folder.write(name, b"1")
    folder.remove("file")
    folder.remove("sub")
    folder.remove("missing")
    assert everything(folder) == ["keep"]
    folder.remove()
    assert not folder.exists()
    folder.remove()


# Whole or not at all


def fail_half_way(folder: Folder, name: str, error: type[BaseException]) -> None:
    with folder.writing(name) as stream:
        stream.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failed_file_but_the_old_one(folder, error):
    folder.write("old", b"old")
    for name in ("sub/new", "old"):
        with pytest.raises(error):
            fail_half_way(folder, name, error)
        assert everything(folder) == ["old"]
    assert folder.read("old") == b"old"


def test_a_local_file_appears_at_the_end_and_two_writers_of_it_do_not_mix(tmp_path):
    folder = Folder.open(str(tmp_path))
    with folder.writing("name") as first:
        first.write(b"1" * 10)
        first.flush()
        assert not folder.exists("name")
        with folder.writing("name") as second:
            second.write(b"2" * 5)
        first.write(b"1" * 10)
    assert folder.read("name") == b"1" * 20
    assert everything(folder) == ["name"]


# Names


def test_join_and_child(folder):
    assert folder.join("a/b") == f"{folder.path}/a/b"
    assert folder.child("a").child("b").path == f"{folder.path}/a/b"
    assert folder.child("a").uri == f"{folder.uri}/a"
    assert folder.child("a").filesystem == folder.filesystem


def test_an_absolute_name_stands_for_itself(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    elsewhere, name = Folder.open("/nowhere"), str(tmp_path / "file")
    assert (elsewhere.join(name), elsewhere.read(name), elsewhere.is_file(name)) == (name, b"1", True)
    assert elsewhere.child(str(tmp_path)).names() == ["file"]


def test_a_folder_is_locked_for_one_command_and_free_when_that_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom tlray.core.storage import Folder\n"
        "with Folder.open(sys.argv[1]).locked():\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    folder = Folder.open(str(tmp_path / "out"))
    command = [sys.executable, "-c", code, folder.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            message = r"another command is writing to .*out: wait for it"
            with pytest.raises(UserError, match=message), folder.locked():
                pass
        finally:
            other.kill()
    with folder.locked():
        folder.write("kept", b"")
    assert folder.names() == ["kept"]


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    folder = Folder.open(str(tmp_path / "out"))
    with folder.locked():
        assert folder.exists()
    assert not folder.exists()
    (tmp_path / "out").mkdir()
    with folder.locked():
        pass
    assert folder.exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/out"):
        with pytest.raises(OSError, match="file"):
            Folder.open(f"{tmp_path}/{path}").write("name", b"1")
    folder = Folder.open(f"{tmp_path}/file/out")
    with pytest.raises(UserError, match=r"cannot write to .*file/out"), folder.locked():
        pass


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    """The limit on the size of a file ends a write half-way, as a full disk does."""
    code = (
        "import resource, sys\nfrom tlray.core.storage import Folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: Folder.open(sys.argv[1]).write('large', bytes(2 << 20))\n"
        "except OSError as error: print(error.strerror)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_new_names_are_written_to_the_disk_as_the_files_are(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync, place = os.fsync, str(tmp_path)

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(place).partition(".")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    Folder.open(tmp_path).write("new/er/name", b"x")
    assert synced == ["", "/new", "/new/er/", "/new/er"]
    assert os.listdir(tmp_path / "new/er") == ["name"]
