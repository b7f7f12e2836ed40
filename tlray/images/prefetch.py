"""Work that takes waiting, done in threads ahead of who asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Prefetch(Generic[Key, Result]):
    """Results of a function by its argument, a bounded number of them ahead."""

    def __init__(self, work: Callable[[Key, Event], Result], threads: int) -> None:
        """Start nothing yet.

        Args:
            work: is given a key, and what is set when the result is no longer wanted.
            threads: how many there are; none does everything when it is asked for.
        """
        self._work = work
        self._over = Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead") if threads else None
        self._begun: dict[Key, Future[Result]] = {}

    def __enter__(self) -> Prefetch[Key, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, keys: Iterable[Key]) -> None:
        """Begin the work for these, which will be asked for soon."""
        for key in keys:
            if self._pool is not None and key not in self._begun:
                self._begun[key] = self._pool.submit(self._work, key, self._over)

    def peek(self, key: Key) -> Result | None:
        """The result for one, if it is there already."""
        future = self._begun.get(key)
        good = future is not None and future.done() and not future.cancelled() and future.exception() is None
        return future.result() if future is not None and good else None

    def take(self, key: Key) -> Result:
        """The result for one, or its error; done now if it was not begun."""
        future = self._begun.pop(key, None)
        if future is None or future.cancel():
            return self._work(key, self._over)
        return future.result()
