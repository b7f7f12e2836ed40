"""Progress on stderr: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tlray.cli import summaries
from tlray.core.results import Account
from tlray.core.text import printable

_SECONDS_BETWEEN_LINES = 10


def say(text: str, end: str = "\n") -> None:
    """Print a message on stderr at once."""
    print(printable(text), end=end, file=sys.stderr, flush=True)


class AccountPrinter:
    """Prints what a job has understood of its images, and again if it has changed."""

    def __init__(self) -> None:
        self._last: list[str] = []

    def __call__(self, account: Account) -> None:
        if (lines := summaries.account(account)) != self._last:
            self._last = lines
            say("\n".join(lines))


class Progress:
    """Shows how many images of a pass are done, and then of the next pass; a context manager.

    It is called with the number of images that are done, and the number of all images.
    """

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
        elif now - self.last >= _SECONDS_BETWEEN_LINES or done == total:
            self.last = now
            say(f"{self.what}: {done:,} of {total:,} images, {rate}")
        if done == total:  # Another pass may follow.
            self.close()
            self.started = now

    def __exit__(self, *error: object) -> None:
        self.close()

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

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def print_epoch(metrics: dict[str, float], epochs: int) -> None:
    """Print the metrics of one epoch; `epochs` is the largest possible number of epochs."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")
    say(f"epoch {metrics['epoch']:>3}/{epochs}  {values}")
