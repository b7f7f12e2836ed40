"""A folder on storage that takes its time, and tells how much was asked for at once."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from tlray.core.storage import Folder


class SlowStorage(LocalFileSystem):
    """Local files and folders, a moment later."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.most: Counter[str] = Counter()
        """How many files ("open") and folders ("find") were asked for at the same time."""
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _wait(self, what: str) -> None:
        with self._lock:
            self._now[what] += 1
            self.most[what] = max(self.most[what], self._now[what])
        time.sleep(0.05)
        with self._lock:
            self._now[what] -= 1

    def open(self, *arguments: Any, **options: Any) -> Any:
        self._wait("open")
        return super().open(*arguments, **options)

    def find(self, *arguments: Any, **options: Any) -> Any:
        self._wait("find")
        return super().find(*arguments, **options)

    def folder(self, path: Path) -> Folder:
        """What is in a local folder, by way of this storage."""
        return Folder(fs.PyFileSystem(fs.FSSpecHandler(self)), str(path), f"slow://{path}")
