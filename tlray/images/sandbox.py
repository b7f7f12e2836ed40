"""Decoding in a task: an image that crashes the decoder, or keeps it busy for ever, costs only itself.

The first attempt of a task decodes in its own process. If that comes to an end, Ray tries the task again, and
then each image is decoded in a process beside it, which may come to an end as well.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from tlray.images import decoder
from tlray.images.bad_image import BadImage

SECONDS: float = 60.0
"""How long one image may be decoded."""
_ATTEMPTS = 2
"""Crashes until an image is taken for their cause: another process may have been short of memory."""

Decode = Callable[[bytes, int, int], npt.NDArray[np.uint8]]
"""As `decoder.decode`."""


@contextmanager
def decoding() -> Iterator[Decode]:
    """What decodes the images of this attempt of a Ray task."""
    from ray._private.worker import global_worker  # It has no public name.

    if global_worker.core_worker.get_current_task_attempt_number() == 0:
        yield in_time
        return
    with DecoderProcess() as beside:
        yield beside


def in_time(data: bytes, image_size: int, max_pixels: int) -> npt.NDArray[np.uint8]:
    """As `decoder.decode`, but ends this process if that takes longer than `SECONDS`.

    Nothing less would do: native code does not come back to Python to be interrupted.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=nowhere)
        try:
            return decoder.decode(data, image_size, max_pixels)
        finally:
            faulthandler.cancel_dump_traceback_later()


class DecoderProcess:
    """Decodes in another process, a new one after each that came to an end."""

    def __enter__(self) -> DecoderProcess:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def _start(self) -> None:
        # Not forked: this process has threads.
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def __call__(self, data: bytes, image_size: int, max_pixels: int) -> npt.NDArray[np.uint8]:
        """As `decoder.decode`.

        Raises:
            BadImage: also `DecoderCrash` and `TimeLimit`.
        """
        for _ in range(_ATTEMPTS):
            started = time.monotonic()
            try:
                return self._pool.submit(in_time, data, image_size, max_pixels).result()
            except BrokenProcessPool:
                self._pool.shutdown()
                self._start()
            if time.monotonic() - started > SECONDS:
                raise BadImage("decode", "TimeLimit", f"not decoded within {SECONDS:g} s")
        raise BadImage("decode", "DecoderCrash", "the process that decoded it crashed")
