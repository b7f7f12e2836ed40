"""This process: what native libraries may print, and how TensorFlow uses the machine."""

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
"""What Keras would import if it is there: that takes as long as Keras, and leaves a cache in the home."""


class _Muting:
    """Keeps this process off stderr as long as one thread or more want it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted, self._stderr = 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                sys.stderr.flush()
                self._stderr = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0:
                os.dup2(self._stderr, 2)
                os.close(self._stderr)


_MUTING = _Muting()


def muted() -> AbstractContextManager[None]:
    """Keep native libraries off stderr, where they write past Python's logging; not with --debug."""
    return nullcontext() if logging.getLogger("tlray").isEnabledFor(logging.DEBUG) else _MUTING


@contextmanager
def importing() -> Iterator[None]:
    """For large imports, of which nothing is garbage: looking for it would take a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def prepare_keras(cpus: int = 0, *, gpu: bool = True) -> None:
    """Import Keras and TensorFlow and set them up in this process; call before anything else does.

    Args:
        cpus: threads for one op, 0 for one a core. Ray sets OMP_NUM_THREADS=1; TensorFlow does not heed it.
        gpu: whether this process may use the GPUs; a driver leaves them to its workers.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    home = os.environ.get("KERAS_HOME")
    # Keras would read its settings from the home folder, another order of channels among them,
    # and leave a file there.
    os.environ["KERAS_HOME"] = os.devnull
    with muted():
        with _Hiding(), importing():
            import keras  # noqa: F401
            import tensorflow as tf

        del os.environ["KERAS_HOME"]
        if home is not None:
            os.environ["KERAS_HOME"] = home

        # A process that has used TensorFlow before keeps its settings.
        with suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(cpus)
            if not gpu:
                tf.config.set_visible_devices([], "GPU")
            for device in tf.config.list_physical_devices("GPU"):
                # Or TensorFlow takes all memory of a GPU that others use as well.
                tf.config.experimental.set_memory_growth(device, True)


def has_hidden_gpus() -> bool:
    """Whether there are GPUs that this process has been set up to leave to others."""
    if "tensorflow" not in sys.modules:
        return False
    config = sys.modules["tensorflow"].config
    return bool(config.list_physical_devices("GPU")) and not config.get_visible_devices("GPU")


class _Hiding(MetaPathFinder):
    """Makes the thread that entered it not find `_HIDDEN`; what was imported before stays."""

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        sys.meta_path.insert(0, self)

    def __exit__(self, *error: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in _HIDDEN and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
