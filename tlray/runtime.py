"""This process: what native libraries may print, and how TensorFlow uses the machine."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


def prepare_tensorflow(cpus: int = 0) -> None:
    """Import TensorFlow and set it up in this process; call before Keras is imported.

    Args:
        cpus: threads for one op, 0 for one a core. Ray sets OMP_NUM_THREADS=1; TensorFlow does not heed it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(cpus)
        for gpu in tf.config.list_physical_devices("GPU"):
            # Or TensorFlow takes all memory of a GPU that others use as well.
            tf.config.experimental.set_memory_growth(gpu, True)
