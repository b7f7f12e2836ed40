"""A folder on storage that takes its time for each file, and tells how many were asked for at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from tlray.core.storage import Folder


class SlowStorage(LocalFileSystem):
    """Local files, a moment later."""

    cachable = False

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds = seconds
        self.most = 0
        """Files that were being opened at the same time."""
        self._now = 0
        self._lock = threading.Lock()

    def open(self, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        return super().open(*arguments, **options)

    def folder(self, path: Path) -> Folder:
        """What is in a local folder, by way of this storage."""
        return Folder(fs.PyFileSystem(fs.FSSpecHandler(self)), str(path), f"slow://{path}")
