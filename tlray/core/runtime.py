"""Settings of this process: what native libraries print, and how TensorFlow uses the machine."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.abc import MetaPathFinder

_HIDDEN = ("matplotlib", "pandas", "scipy", "sklearn")
"""Packages that Keras imports if it finds them, which doubles its time and leaves a cache in the home."""


class _Muting:
    """Silences stderr of this process while at least one thread is inside; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads, self._stderr = 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                sys.stderr.flush()
                self._stderr = os.dup(2)
                with open(os.devnull, "wb") as null:
                    os.dup2(null.fileno(), 2)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                os.dup2(self._stderr, 2)
                os.close(self._stderr)


_MUTING = _Muting()


def muted() -> AbstractContextManager[None]:
    """Silence stderr, to which native libraries write without Python's logging; do nothing with --debug."""
    return nullcontext() if logging.getLogger("tlray").isEnabledFor(logging.DEBUG) else _MUTING


@contextmanager
def importing() -> Iterator[None]:
    """Switch off the search for garbage, which would take a sixth of the time of a large import."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def prepare_keras(cpus: int = 0, *, gpu: bool = True) -> None:
    """Import Keras and TensorFlow and set them up; call it before anything else imports them.

    Args:
        cpus: threads for one operation, 0 for one per core; TensorFlow ignores Ray's OMP_NUM_THREADS=1.
        gpu: whether this process may use GPUs; a driver leaves them to its workers.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    home = os.environ.get("KERAS_HOME")
    # Otherwise Keras reads settings such as the order of channels from the home folder, and writes there.
    os.environ["KERAS_HOME"] = os.devnull
    with muted():
        with _Hiding(), importing():
            import keras  # noqa: F401
            import tensorflow as tf

        del os.environ["KERAS_HOME"]
        if home is not None:
            os.environ["KERAS_HOME"] = home

        with suppress(RuntimeError):  # TensorFlow allows no change after its first use.
            tf.config.threading.set_intra_op_parallelism_threads(cpus)
            if not gpu:
                tf.config.set_visible_devices([], "GPU")
            for device in tf.config.list_physical_devices("GPU"):
                # By default TensorFlow takes all memory of a GPU, which others may use as well.
                tf.config.experimental.set_memory_growth(device, True)


def has_hidden_gpus() -> bool:
    """Whether the machine has GPUs that this process does not use because of `prepare_keras(gpu=False)`."""
    if "tensorflow" not in sys.modules:
        return False
    config = sys.modules["tensorflow"].config
    return bool(config.list_physical_devices("GPU")) and not config.get_visible_devices("GPU")


class _Hiding(MetaPathFinder):
    """Hides `_HIDDEN` from imports of this thread, unless they are imported already; a context manager."""

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        sys.meta_path.insert(0, self)

    def __exit__(self, *error: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in _HIDDEN and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
