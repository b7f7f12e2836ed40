"""The only worker of a training without Ray, in the command's own process, and its checkpoints."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlray.core.storage import Folder
from tlray.training.worker.task import Report

_WHOLE = "whole"
"""The last file that is written into the folder of a checkpoint."""


class LocalWorker:
    """The `Worker` of a training without Ray."""

    rank, count = 0, 1

    def __init__(self, work: Folder, report: Report) -> None:
        """Keep checkpoints in `work`, a folder that is removed when the model is complete."""
        self.report = report
        # The job removes this folder when the model is complete, and with it the files of a killed process.
        self.scratch = work.path if work.is_local else None
        self._checkpoints = work.child("local")

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        names = self._checkpoints.names()
        whole = [name for name in names if self._checkpoints.is_file(f"{name}/{_WHOLE}")]
        if not whole:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="tlray-", dir=self.scratch) as copy:
            files = self._checkpoints.walk(whole[-1])
            for name in set(files) - {f"{whole[-1]}/{_WHOLE}"}:
                path = Path(copy, posixpath.relpath(name, whole[-1]))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._checkpoints.read(name))
            yield copy

    def save(self, folder: str | None) -> None:
        assert folder is not None
        before = self._checkpoints.names()
        new = f"{int(before[-1]) + 1 if before else 0:06d}"
        for path in Path(folder).rglob("*"):
            if path.is_file():
                self._checkpoints.write(f"{new}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        self._checkpoints.write(f"{new}/{_WHOLE}", b"")
        for name in before:
            self._checkpoints.remove(name)
