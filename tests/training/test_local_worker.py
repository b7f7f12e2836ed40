"""Checkpoints of a training in the command's own process: whole or not there."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from tlray.core.storage import Folder
from tlray.training.local_worker import LocalWorker


@pytest.fixture(params=["local", "memory"])
def work(request, tmp_path):
    if request.param == "local":
        yield Folder.open(str(tmp_path / "model" / ".training"))
        return
    import fsspec

    yield Folder.open("memory://alone-test/.training")
    fsspec.filesystem("memory").rm("/alone-test", recursive=True)


def contents(worker: LocalWorker) -> dict[str, bytes] | None:
    with worker.latest() as folder:
        if folder is None:
            return None
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def state(tmp_path) -> Path:
    folder = tmp_path / "state"
    (folder / "logs").mkdir(parents=True)
    (folder / "state.npz").write_bytes(b"1")
    (folder / "logs" / "events").write_bytes(b"2")
    return folder


def test_the_last_checkpoint_comes_back_in_another_process(work, state):
    assert contents(LocalWorker(work, print)) is None
    first = LocalWorker(work, print)
    for number in range(12):
        (state / "state.npz").write_bytes(b"%d" % number)
        first.save(str(state))
    assert contents(LocalWorker(work, print)) == {"state.npz": b"11", "logs/events": b"2"}
    assert len(work.names()) == 1


def test_a_checkpoint_that_was_not_finished_is_none(work, state, monkeypatch):
    worker = LocalWorker(work, print)
    worker.save(str(state))
    before = contents(worker)
    (state / "state.npz").write_bytes(b"new")

    def killed(archive: ZipFile, path: Path, name: Path, write=ZipFile.write) -> None:
        write(archive, path, name)
        if path.name == "state.npz":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ZipFile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            worker.save(str(state))
    assert contents(LocalWorker(work, print)) == before
    worker.save(str(state))
    assert contents(LocalWorker(work, print)) == {"state.npz": b"new", "logs/events": b"2"}
