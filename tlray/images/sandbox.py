"""Runs the decoder so that an image that crashes it, or keeps it busy for ever, costs no other image.

The first attempt of a Ray task decodes in its own process, which is faster. If that process ends, Ray tries
the task again, and then each image is decoded in a process beside it. Nothing tries a command again, so a
command always decodes in a process beside its own.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from tlray.core import private
from tlray.core.errors import JobError
from tlray.images.bad_image import BadImage

SECONDS: float = 60.0
"""How long one image may be decoded."""
_ATTEMPTS = 2
"""Crashes until an image is taken for their cause: another process may have been short of memory."""
_CHILD = (
    "import sys; from multiprocessing.connection import Connection; parent = Connection(int(sys.argv[1])); "
    "sys.path[:] = parent.recv(); from tlray.images import sandbox; sandbox.serve(parent)"
)

Result = TypeVar("Result")


class Run(Protocol):
    """Runs a function on the bytes of an image and returns what it returns; raises what it raises."""

    def __call__(self, function: Callable[[bytes], Result], data: bytes) -> Result: ...


@contextmanager
def in_task() -> Iterator[Run]:
    """The way to decode in a Ray task that Ray tries again if its process ends."""
    if private.task_attempt() == 0:
        yield in_time
        return
    with DecoderProcess() as run:
        yield run


def in_time(function: Callable[[bytes], Result], data: bytes) -> Result:
    """As `Run`, but ends this process if the function takes longer than `SECONDS`.

    Nothing less would do: native code does not come back to Python to be interrupted.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=nowhere)
        try:
            return function(data)
        finally:
            faulthandler.cancel_dump_traceback_later()


class DecoderProcess:
    """A `Run` in another process, which is started for the first image and after each that ended it.

    That process imports what the function needs and no more: a script that calls tlray is not run again
    there, as multiprocessing would do.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self, function: Callable[[bytes], Result], data: bytes) -> Result:
        """As `Run`; the function and what it returns are pickled.

        Raises:
            BadImage: also `DecoderCrash` and `TimeLimit`.
            JobError: no process can be started.
        """
        for _ in range(_ATTEMPTS):
            connection = self._connection or self._start()
            started = time.monotonic()
            try:
                connection.send((function, data))
                reply: tuple[Result, Exception | None] = connection.recv()
            except (EOFError, OSError):
                self._end()
            else:
                result, error = reply
                if error is not None:
                    raise error
                return result
            if time.monotonic() - started > SECONDS:
                raise BadImage("decode", "TimeLimit", f"not decoded within {SECONDS:g} s")
        raise BadImage("decode", "DecoderCrash", "the process that decoded it crashed")

    def _start(self) -> Connection:
        self._connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for the command, which then ends this process.
                start_new_session=True,
            )
            theirs.close()
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
    """Answer a `DecoderProcess` until it closes the connection."""
    with suppress(EOFError, ConnectionError):
        parent.send("ready")
        while True:
            parent.send(_answer(parent.recv_bytes()))


def _answer(request: bytes) -> tuple[Any, Exception | None]:
    try:
        function, data = pickle.loads(request)
        return in_time(function, data), None
    except Exception as error:
        return None, error
