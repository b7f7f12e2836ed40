"""The only worker of a training without Ray, in the command's own process, and its checkpoints."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

from tlray.core.storage import Folder
from tlray.training.worker.task import Report

_CHECKPOINT = "checkpoint.zip"


class LocalWorker:
    """The `Worker` of a training without Ray."""

    rank, count = 0, 1

    def __init__(self, work: Folder, report: Report) -> None:
        """Keep the last checkpoint in `work`, a folder that is removed when the model is complete."""
        self.report, self._work = report, work
        # The job removes this folder when the model is complete, and with it the files of a killed process.
        self.scratch = work.path if work.is_local else None

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        if not self._work.is_file(_CHECKPOINT):
            yield None
            return
        data = io.BytesIO(self._work.read(_CHECKPOINT))
        with ZipFile(data) as archive, tempfile.TemporaryDirectory(prefix="tlray-", dir=self.scratch) as copy:
            archive.extractall(copy)
            yield copy

    def save(self, folder: str | None) -> None:
        assert folder is not None
        with self._work.writing(_CHECKPOINT) as stream, ZipFile(stream, "w") as archive:
            for path in Path(folder).rglob("*"):
                archive.write(path, path.relative_to(folder))
