"""Runs the decoder so that an image that crashes or stalls it does not affect other images.

The first attempt of a Ray task decodes in its own process, which is faster. If that process ends, Ray runs
the task again, and the second attempt decodes each image in a separate process. Nothing runs a command
again, so a command always decodes in a separate process.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar, cast

from tlray.core import private
from tlray.core.config import SECONDS_PER_IMAGE
from tlray.core.errors import JobError
from tlray.images.bad_image import BadImage

_SLOW_IMAGES, _SLOW = 10, 1 / 20
"""When slow images have taken as long as ten images may take, each later image gets a twentieth of its time.
An image is slow if it takes longer than that. So a shard of slow images ends in minutes, not in hours."""
_GRACE = 5.0
"""Seconds after which a process that should have ended itself is killed, because it may be stopped."""
_TASK_ATTEMPTS = 5
"""A task whose process has ended this often is given up. A crash of the decoder ends one process only."""
_ATTEMPTS = 2
"""An image is bad only if it crashes this many processes, because one crash may be due to low memory."""
_CHILD = (
    "import sys; from multiprocessing.connection import Connection; parent = Connection(int(sys.argv[1])); "
    "sys.path[:] = parent.recv(); from tlray.images import sandbox; sandbox.serve(parent)"
)

Result = TypeVar("Result")


class TimedRun:
    """Calls functions with the bytes of images in this process, which ends if an image takes too long.

    It is used in a `with` block, and returns what the function returns and raises what it raises.
    """

    def __init__(self, seconds: float = SECONDS_PER_IMAGE) -> None:
        """`seconds` is the most time for one image, as long as few images are slow."""
        self._seconds = seconds
        self._slow_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, function: Callable[[bytes], Result], data: bytes) -> Result:
        started = time.monotonic()
        try:
            return self._run(function, data, self.limit)
        finally:
            seconds = time.monotonic() - started
            if seconds > self._seconds * _SLOW:
                self._slow_seconds += seconds

    @property
    def limit(self) -> float:
        """The most seconds for the next image."""
        spent = self._slow_seconds >= _SLOW_IMAGES * self._seconds
        return self._seconds * _SLOW if spent else self._seconds

    def _run(self, function: Callable[[bytes], Result], data: bytes, limit: float) -> Result:
        return _with_time_limit(function, data, limit)


def in_task(seconds: float) -> TimedRun:
    """The way to decode in a Ray task that Ray runs again if its process ends.

    Raises:
        JobError: the process has ended so often that the images cannot be the reason.
    """
    attempt = private.task_attempt()
    if attempt >= _TASK_ATTEMPTS:
        raise JobError(
            f"a process that reads images has ended {attempt} times: its node has probably too little memory"
        )
    return TimedRun(seconds) if attempt == 0 else DecoderProcess(seconds)


def _with_time_limit(function: Callable[[bytes], Result], data: bytes, seconds: float) -> Result:
    """The result of the function; this process ends if the function takes longer.

    Nothing less drastic works: native code cannot be interrupted from Python.
    """
    with open(os.devnull, "w") as devnull:
        faulthandler.dump_traceback_later(seconds, exit=True, file=devnull)
        try:
            return function(data)
        finally:
            faulthandler.cancel_dump_traceback_later()


class DecoderProcess(TimedRun):
    """Calls functions in another process.

    It starts with the first image, and again after an image that ended it. It imports only what the function
    needs. With multiprocessing it would instead run the user's script, which calls tlray, a second time.
    """

    def __init__(self, seconds: float = SECONDS_PER_IMAGE) -> None:
        super().__init__(seconds)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __exit__(self, *error: object) -> None:
        self._end()

    def _run(self, function: Callable[[bytes], Result], data: bytes, limit: float) -> Result:
        """Run the function; it and its result are pickled.

        Raises:
            BadImage: the image crashes the process (`DecoderCrash`) or takes too long (`TimeLimit`).
            JobError: the process cannot be started.
        """
        for _ in range(_ATTEMPTS):
            connection = self._connection or self._start()
            started = time.monotonic()
            try:
                connection.send((function, data, limit))
                if not connection.poll(limit + _GRACE):
                    raise EOFError
                result, error = connection.recv()
            except (EOFError, OSError):
                self._end()
            else:
                if error is not None:
                    raise error
                return cast("Result", result)
            if time.monotonic() - started > limit:
                reason = ", because many images before it were slow" if limit < self._seconds else ""
                raise BadImage("decode", "TimeLimit", f"not decoded within {limit:g} s{reason}")
        raise BadImage("decode", "DecoderCrash", "the process that decoded it crashed")

    def _start(self) -> Connection:
        self._connection, remote = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, str(remote.fileno())],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C must reach only the command, which then ends this process.
                start_new_session=True,
            )
            remote.close()
            self._connection.send(sys.path)
            self._connection.recv()
        except (EOFError, OSError) as error:
            raise JobError(f"the process that decodes images did not start: {error!r}") from error
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None


def serve(parent: Connection) -> None:
    """Answer the requests of a `DecoderProcess` until it closes the connection."""
    with suppress(EOFError, ConnectionError):
        parent.send("ready")
        while True:
            request = parent.recv_bytes()
            reply: tuple[Any, Exception | None]
            try:
                reply = _with_time_limit(*pickle.loads(request)), None
            except Exception as error:
                reply = None, error
            parent.send(reply)
