"""An image that crashes the decoder, or never ends, costs itself and no other."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.support.harmful_images import CRASHING, HANGING, SECONDS, picture
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.images import copies, decoder, sandbox
from tlray.images.bad_image import BadImage
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place

CAPTION = {"text": "cat: 98.7 %", "kind": "PNG", "max_pixels": 400}


def test_another_process_returns_and_raises_the_same():
    decode = partial(decoder.decode, image_size=8, max_pixels=400)
    with sandbox.DecoderProcess() as run:
        np.testing.assert_array_equal(run(decode, picture()), decode(picture()))
        with pytest.raises(BadImage) as bad:
            run(decode, b"none")
        assert (bad.value.stage, bad.value.error) == ("decode", "NotAnImage")
        for copy in (partial(copies.thumbnail, side=8), partial(copies.captioned, **CAPTION)):
            assert run(copy, picture()) == copy(picture())
        with pytest.raises(ZeroDivisionError):  # A fault of tlray's own is not a bad image.
            run(eval, b"1 / 0")


def test_no_process_is_started_before_there_is_an_image(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with sandbox.DecoderProcess() as run, pytest.raises(JobError, match="did not start"):
        run(len, b"")


def test_a_loader_loses_only_the_images_that_end_its_process(harm, tmp_path):
    sizes = [(20, 20), CRASHING, (20, 20), HANGING, (20, 20)]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.png").write_bytes(picture(size))
    outcomes, seconds = [], [0.0]
    with ImageLoader(Folder.open(str(tmp_path)), 8, 400, SECONDS) as load:
        for number in range(6):
            try:
                outcomes.append(load(Place(f"{number}.png")).shape)
            except BadImage as bad:
                outcomes.append(bad.error)
            seconds.append(load.decode_seconds)
    good = (8, 8, 3)
    assert outcomes == [good, "DecoderCrash", good, "TimeLimit", good, "FileNotFoundError"]
    assert load.read_seconds > 0
    assert [later > earlier for earlier, later in pairwise(seconds)] == [True, False] * 3
    assert seconds[-1] < 1


def test_many_slow_images_lower_the_limit_for_the_images_after_them(monkeypatch):
    monkeypatch.setattr(sandbox, "_SLOW_IMAGES", 0.1)
    with sandbox.DecoderProcess(8) as run:
        assert run.limit == 8
        with suppress(BadImage):  # Under load, the start of the process takes as long as several images.
            for _ in range(2):
                run(eval, b"__import__('time').sleep(0.5)")
        assert run.limit == 0.4
        with pytest.raises(
            BadImage, match=r"not decoded within 0\.4 s, because many images before it were slow"
        ):
            run(eval, b"__import__('time').sleep(9)")
    quick = sandbox.TimedRun()
    monkeypatch.setattr(sandbox, "_SLOW_IMAGES", 1e-9)
    assert {(quick(len, b""), quick.limit) for _ in range(100)} == {(0, 60)}


def test_a_process_that_is_stopped_is_killed(monkeypatch):
    monkeypatch.setattr(sandbox, "_GRACE", 0.1)
    with sandbox.DecoderProcess(0.2) as run:
        with pytest.raises(BadImage, match=r"TimeLimit: not decoded within 0\.2 s"):
            run(eval, b"__import__('os').kill(__import__('os').getpid(), 19)")
        assert run(len, b"next") == 4


@pytest.mark.parametrize("attempt", range(6))
def test_a_task_is_given_up_when_its_process_has_ended_five_times(attempt, monkeypatch):
    monkeypatch.setattr(sandbox.private, "task_attempt", lambda: attempt)
    if attempt < 5:
        assert type(sandbox.in_task(1)) is (sandbox.DecoderProcess if attempt else sandbox.TimedRun)
    else:
        with pytest.raises(JobError, match=r"has ended 5 times: .+ too little memory"):
            sandbox.in_task(1)


def test_a_process_decodes_all_images_of_a_loop_and_ends_with_it():
    with sandbox.DecoderProcess() as run:
        processes = {run(eval, b"__import__('os').getpid()") for _ in range(3)}
    (process,) = processes
    assert process != os.getpid()
    assert not Path(f"/proc/{process}").exists()


def test_the_process_runs_no_script_again_and_imports_little(tmp_path):
    """A script need not say `if __name__ == "__main__"`, and pays neither for Ray nor for TensorFlow."""
    script = tmp_path / "script.py"
    script.write_text(f"""
print("the script")
from functools import partial
from tlray.evaluation import annotate, evaluate, predict
from tlray.images import copies, decoder, sandbox

data = {picture()!r}
loaded = b"sorted({{'ray', 'keras', 'tensorflow', 'pyarrow'}} & {{*__import__('sys').modules}})"
with sandbox.DecoderProcess() as run:
    run(partial(decoder.decode, image_size=8, max_pixels=400), data)
    run(partial(copies.thumbnail, side=8), data)
    run(partial(copies.captioned, **{CAPTION}), data)
    print(run(eval, loaded))
""")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (["the script", "[]"], "")
