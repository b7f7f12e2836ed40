"""The only worker of a training in the command's own process, and where its checkpoints lie."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tlray.core.storage import Folder

_WHOLE = "whole"
"""Written last into the folder of a checkpoint."""


class LocalWorker:
    """The `Worker` of a training without Ray."""

    rank, count = 0, 1

    def __init__(self, work: Folder, report: Callable[[dict[str, float]], None]) -> None:
        """Keep checkpoints in a folder.

        Args:
            work: of the model; it is removed when the model is complete.
            report: called with the metrics of each epoch.
        """
        self.report = report
        # What a killed process leaves there is removed with the work.
        self.scratch = work.path if work.is_local else None
        self._checkpoints = work.child("local")

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        """A copy of the last checkpoint, of an earlier process too, while the block lasts."""
        whole = [name for name in self._names() if self._checkpoints.is_file(f"{name}/{_WHOLE}")]
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
        """Keep a copy of this folder as the checkpoint."""
        assert folder is not None
        before = self._names()
        new = f"{int(before[-1]) + 1 if before else 0:06d}"
        for path in Path(folder).rglob("*"):
            if path.is_file():
                self._checkpoints.write(f"{new}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        self._checkpoints.write(f"{new}/{_WHOLE}", b"")
        for name in before:
            self._checkpoints.remove(name)

    def _names(self) -> list[str]:
        return self._checkpoints.names()
