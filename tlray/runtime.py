"""This process: what native libraries may print, and how TensorFlow uses the machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def muted() -> Iterator[None]:
    """Keep native libraries off stderr, where they write past Python's logging; not with --debug."""
    if logging.getLogger("tlray").isEnabledFor(logging.DEBUG):
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


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
    # Keras would import matplotlib, which takes time and leaves a cache there.
    hidden = "matplotlib" not in sys.modules
    if hidden:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    with muted():
        import keras  # noqa: F401
        import tensorflow as tf

        if hidden:
            del sys.modules["matplotlib"]
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
