"""An image that crashes the decoder, or never ends, costs itself and no other; done for real, by signals."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import ROOT
from tlray.cluster import session
from tlray.core.config import EvaluateConfig, ExtractConfig, FitConfig, PredictConfig
from tlray.core.errors import JobError
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.features.plan import plan
from tlray.features.verify import verify
from tlray.images import copies, decoder, sandbox
from tlray.images.bad_image import BadImage
from tlray.images.loader import ImageLoader
from tlray.images.reader import Place
from tlray.training.fit import fit

CRASHING, KILLED, HANGING = (13, 17), (13, 18), (13, 19)
LARGE_CRASHING = (104, 136)
SECONDS = 2.0
HARM = f"""
import os, signal, time
from PIL import ImageFile
from tlray.images import sandbox

sandbox.SECONDS = {SECONDS}
load = ImageFile.ImageFile.load

def harm(image, *arguments):
    if image.size in {CRASHING, LARGE_CRASHING}:
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
SMALL = ExtractConfig(backbone="grey-pixels", image_size=12)
CAPTION = {"text": "cat: 98.7 %", "kind": "PNG", "max_pixels": 400}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a subprocess in which those images do harm."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HARM)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


@pytest.fixture
def harm(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They do it in the subprocesses of this process."""
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(sandbox, "SECONDS", SECONDS)


def picture(size: tuple[int, int] = (20, 20), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(stream, kind)
    return stream.getvalue()


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
    with ImageLoader(Folder.open(str(tmp_path)), 8, 400) as load:
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


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Twelve pictures that are all the same, half of them in each class."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture())
    return folder


@pytest.fixture(scope="module")
def features(images, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("features") / "set")
    extract(str(images), out, SMALL)
    return out


@pytest.fixture(scope="module")
def model(features, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("model") / "linear")
    fit(features, out, FitConfig(head="linear", epochs=1))
    return out


@pytest.fixture
def replaced(images) -> Iterator[Callable[[str, bytes], None]]:
    """Puts another picture in the place of one, for one test."""
    paths = []

    def replace(path: str, data: bytes) -> None:
        paths.append(path)
        (images / path).write_bytes(data)

    yield replace
    for path in paths:
        (images / path).write_bytes(picture())


@pytest.mark.slow
@pytest.mark.parametrize(("size", "error"), [(CRASHING, "DecoderCrash"), (HANGING, "TimeLimit")])
def test_verify_names_an_image_that_ends_the_decoder(images, features, harm, replaced, size, error):
    replaced("b/03.png", picture(size))
    with pytest.raises(JobError, match=rf"^b/03\.png was good when .+, and is bad now: .+ \({error}\)"):
        verify(features, str(images))


@pytest.mark.slow
def test_plan_counts_the_images_that_end_the_decoder(images, harm, replaced):
    before = plan(str(images), SMALL).kinds[0].decode_ms
    replaced("a/02.png", picture(CRASHING))
    replaced("b/03.png", picture(HANGING))
    planned = plan(str(images), SMALL)
    assert (planned.images, planned.sample, planned.sample_errors) == (12, 12, 2)
    assert planned.kinds[0].decode_ms < before + 50  # A stall of two seconds would be 167 an image.


@pytest.mark.slow
@pytest.mark.parametrize(("size", "error"), [(CRASHING, "DecoderCrash"), (HANGING, "TimeLimit")])
def test_a_prediction_names_an_image_that_ends_the_decoder(images, model, harm, replaced, size, error):
    replaced("b/03.png", picture(size))
    path = str(images / "b" / "03.png")
    with pytest.raises(JobError, match=rf"^{path}: .+ \({error}\)$"):
        predict(model, path)


@pytest.mark.slow
def test_copies_name_an_image_that_ends_the_decoder_in_full_size(model, harm, tmp_path):
    """The prediction decodes a JPEG scaled down, and only the copy takes all of it."""
    path = tmp_path / "images" / "large.jpg"
    path.parent.mkdir()
    path.write_bytes(picture(LARGE_CRASHING, "JPEG"))
    config = PredictConfig(annotate=str(tmp_path / "copies"))
    assert predict(model, path).rows == 1
    with pytest.raises(JobError, match=rf"^{path}: .+ \(DecoderCrash\)$"):
        predict(model, path, config=config)
    failed = pytest.raises(JobError, match=r"large\.jpg was predicted, and cannot be copied: DecoderCrash")
    with session.connect(None), failed:
        predict(model, str(path.parent), str(tmp_path / "out.csv"), config)


@pytest.mark.slow
def test_a_report_lacks_only_the_thumbnails_that_end_the_decoder(
    images, features, model, harm, replaced, tmp_path
):
    def thumbnails() -> dict[str, bool]:
        mistakes = evaluate(model, features, EvaluateConfig(), out=str(tmp_path / "report")).mistakes
        return {mistake.path: mistake.thumbnail is not None for mistake in mistakes}

    before = thumbnails()
    assert list(before.values()) == [True] * 6
    crashing, hanging = list(before)[1:3]
    replaced(crashing, picture(CRASHING))
    replaced(hanging, picture(HANGING))
    assert thumbnails() == {**before, crashing: False, hanging: False}


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
    assert (found["images"], found["rows"], found["errors"]) == (140, 137, 3)
    errors = pq.read_table(tmp_path / "set" / "errors").to_pydict()
    assert dict(zip(errors["path"], errors["error"], strict=True)) == {
        "005.png": "DecoderCrash",
        "090.png": "TimeLimit",
        "135.png": "DecoderCrash",
    }
