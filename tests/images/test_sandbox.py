"""An image that crashes the decoder, or never ends, costs itself and no other; done for real, by signals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray.images import decoder, sandbox
from tlray.images.bad_image import BadImage

CRASHING, KILLED, HANGING = (13, 17), (13, 18), (13, 19)
HARM = f"""
import os, signal, time
from PIL import ImageFile
from tlray.images import sandbox

sandbox.SECONDS = 2.0
load = ImageFile.ImageFile.load

def harm(image, *arguments):
    if image.size == {CRASHING}:
        os.kill(os.getpid(), signal.SIGSEGV)
    if image.size == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)
    if image.size == {HANGING}:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        while True:
            time.sleep(60)
    return load(image, *arguments)

ImageFile.ImageFile.load = harm
"""
"""Run by each Python process as it starts: a fault in Pillow's native code would do the same, and the kernel
where memory runs out."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HARM)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def picture(size: tuple[int, int] = (20, 20)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_beside_decodes_the_same_pixels_and_gives_the_same_reasons():
    with sandbox.DecoderProcess() as beside:
        np.testing.assert_array_equal(beside(picture(), 8, 400), decoder.decode(picture(), 8))
        with pytest.raises(BadImage) as bad:
            beside(b"none", 8, 400)
        assert (bad.value.stage, bad.value.error) == ("decode", "NotAnImage")


def test_beside_outlives_what_ends_its_process(environment):
    code = f"""
import io
from PIL import Image
from tlray.images import sandbox
from tlray.images.bad_image import BadImage

def picture(size):
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()

if __name__ == "__main__":
    with sandbox.DecoderProcess() as beside:
        for size in [(20, 20), {CRASHING}, (20, 20), {HANGING}, (20, 20)]:
            try:
                print(beside(picture(size), 8, 400).shape)
            except BadImage as bad:
                print(bad.error)
"""
    script = Path(environment["PYTHONPATH"], "script.py")
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    good = "(8, 8, 3)"
    assert done.stdout.splitlines() == [good, "DecoderCrash", good, "TimeLimit", good]


@pytest.mark.slow
def test_a_job_loses_only_the_images_that_end_their_processes(environment, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(140):
        size = {5: CRASHING, 90: HANGING, 135: KILLED}.get(number, (20, 20))
        (images / f"{number:03d}.png").write_bytes(picture(size))
    command = [sys.executable, "-m", "tlray", "extract", images, "--out", tmp_path / "set", "--json"]
    settings = ["--backbone", "grey-pixels", "--image-size", "16"]
    # Without the guard Ray would try again for ever.
    done = subprocess.run([*command, *settings], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found.images, found.rows, found.errors) == (140, 137, 3)
    errors = pq.read_table(tmp_path / "set" / "errors").to_pydict()
    assert dict(zip(errors["path"], errors["error"], strict=True)) == {
        "005.png": "DecoderCrash",
        "090.png": "TimeLimit",
        "135.png": "DecoderCrash",
    }
