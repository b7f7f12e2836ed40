"""Progress on stderr: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Called with images done and to do, of one pass after the other; a context manager."""

    _SECONDS_BETWEEN_LINES = 10

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = self.last = time.monotonic()
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        self._open()
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._open()
        rate = f"{done / (now - self.started):.1f} images/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, rate=rate)
        elif now - self.last >= self._SECONDS_BETWEEN_LINES or done == total:
            self.last = now
            print(f"{self.what}: {done:,} of {total:,} images, {rate}", file=sys.stderr, flush=True)
        if done == total:  # Another pass may follow.
            self._close()
            self.started = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> None:
        if self.bar is None and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=None, rate="starting")

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def print_epoch(metrics: dict[str, float], epochs: int) -> None:
    """One line for an epoch of at most so many."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")
    print(f"epoch {metrics['epoch']:>3}/{epochs}  {values}", file=sys.stderr, flush=True)
