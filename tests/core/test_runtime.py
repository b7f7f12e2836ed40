"""What a process may print, and what Keras may import in it."""

import os
import subprocess
import sys
import threading

import pytest

from tlray.core.runtime import muted


def test_several_threads_can_mute_at_once(capfd):
    """Whoever comes first or last, nothing is printed meanwhile and everything afterwards."""
    first_is_in, second_is_out = threading.Event(), threading.Event()

    def first() -> None:
        with muted():
            first_is_in.set()
            second_is_out.wait(10)
            os.write(2, b"hidden")

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with muted():
        os.write(2, b"hidden")
    os.write(2, b"hidden")  # The other thread still wants it so.
    second_is_out.set()
    thread.join()
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_an_error_ends_the_muting(capfd):
    with pytest.raises(ValueError, match="x"), muted():
        raise ValueError("x")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


@pytest.mark.slow
def test_keras_comes_without_what_it_does_not_need():
    """It can be imported afterwards, and by another thread even meanwhile."""
    code = (
        "import sys, threading\n"
        "from tlray.core.runtime import prepare_keras\n"
        "other = threading.Thread(target=lambda: __import__('pandas'))\n"
        "other.start()\n"
        "prepare_keras()\n"
        "other.join()\n"
        "assert 'pandas' in sys.modules\n"
        "assert not {'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "import keras, scipy.stats, sklearn.metrics, matplotlib\n"
        "print(keras.ops.convert_to_numpy(keras.ops.ones(2)).sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "2.0\n", done.stderr
