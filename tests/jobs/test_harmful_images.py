"""Images that crash or stall the decoder: every job loses them and no other."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import ROOT
from tests.support.harmful_images import CRASHING, HANGING, KILLED, LARGE_CRASHING, SECONDS, picture
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.features.plan import plan
from tlray.features.verify import verify
from tlray.training.fit import fit

SMALL = ExtractConfig(backbone="grey-pixels", image_size=12, seconds_per_image=SECONDS)


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
def features(images, ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("features") / "set"
    extract(images, out, SMALL)
    return out


@pytest.fixture(scope="module")
def model(features, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "linear"
    fit(features, out, head="linear", epochs=1)
    return out


@pytest.fixture
def replaced(images) -> Iterator[Callable[[str, tuple[int, int]], None]]:
    """Puts a picture of another size in the place of one, for one test."""
    paths = []

    def replace(path: str, size: tuple[int, int]) -> None:
        paths.append(path)
        (images / path).write_bytes(picture(size))

    yield replace
    for path in paths:
        (images / path).write_bytes(picture())


def test_verify_names_an_image_that_ends_the_decoder(images, features, harm, replaced):
    replaced("b/03.png", CRASHING)
    with pytest.raises(JobError, match=r"^b/03\.png was good when .+, and is bad now: .+ \(DecoderCrash\)"):
        verify(features, images)


def test_plan_counts_the_images_that_end_the_decoder(images, harm, replaced):
    replaced("a/02.png", CRASHING)
    replaced("b/03.png", HANGING)
    planned = plan(images, SMALL)
    assert (planned.images, planned.sample, planned.sample_errors) == (12, 12, 2)
    assert planned.kinds[0].decode_ms < 1000 * SECONDS / 12  # The stall would take at least as long.


def test_a_prediction_names_an_image_that_ends_the_decoder(images, model, harm, replaced):
    replaced("b/03.png", HANGING)
    with pytest.raises(JobError, match=rf"^{images}/b/03.png: .+ \(TimeLimit\)$"):
        predict(model, images / "b" / "03.png", seconds_per_image=SECONDS)


@pytest.fixture
def large(tmp_path) -> Path:
    """A JPEG that a prediction decodes scaled down, and of which only a copy takes all."""
    path = tmp_path / "large" / "large.jpg"
    path.parent.mkdir()
    path.write_bytes(picture(LARGE_CRASHING, "JPEG"))
    return path


def test_a_copy_names_an_image_that_ends_the_decoder_in_full_size(model, harm, large, tmp_path):
    assert predict(model, large).rows == 1
    with pytest.raises(JobError, match=rf"^{large}: .+ \(DecoderCrash\)$"):
        predict(model, large, annotate=str(tmp_path / "copies"))


def test_a_report_lacks_thumbnails_that_end_the_decoder(features, model, harm, replaced, tmp_path):
    def thumbnails() -> dict[str, bool]:
        mistakes = evaluate(model, features, out=tmp_path / "report", seconds_per_image=SECONDS).mistakes
        return {mistake.path: mistake.thumbnail is not None for mistake in mistakes}

    before = thumbnails()
    assert list(before.values()) == [True] * 6
    crashing, hanging = list(before)[1:3]
    replaced(crashing, CRASHING)
    replaced(hanging, HANGING)
    assert thumbnails() == {**before, crashing: False, hanging: False}


JOBS = """
import sys
from tests.support.numpy_network import installed, load_classes
from tlray.cluster import session
from tlray.core.errors import JobError
from tlray.evaluation import model_inference
from tlray.evaluation.predict import predict
from tlray.features.extract import extract

model, *places = sys.argv[1:]
model_inference.loader = lambda *given: load_classes
with session.connect(None), installed():
    result = extract(*places[:2], backbone="grey-pixels", image_size=16, seconds_per_image=2)
    print(result.images, result.rows, result.errors)
    try:
        predict(model, *places[2:4], annotate=places[4])
    except JobError as error:
        print(error)
"""


@pytest.mark.distributed
def test_a_job_loses_only_the_images_that_end_their_processes(model, harmful, large, tmp_path):
    """In a process of its own, with a Ray of its own, whose tasks come to harm too."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(140):
        size = {5: CRASHING, 90: HANGING, 135: KILLED}.get(number, (20, 20))
        (images / f"{number:03d}.png").write_bytes(picture(size))
    places = [images, tmp_path / "set", large.parent, tmp_path / "out.csv", tmp_path / "copies"]
    command = [sys.executable, "-c", JOBS, model, *map(str, places)]
    done = subprocess.run(command, env=harmful, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert "140 137 3" in done.stdout.splitlines(), done.stderr
    assert "large.jpg was predicted, but cannot be copied now: DecoderCrash" in done.stdout
    errors = pq.read_table(tmp_path / "set" / "errors").to_pydict()
    expected = {"005.png": "DecoderCrash", "090.png": "TimeLimit", "135.png": "DecoderCrash"}
    assert dict(zip(errors["path"], errors["error"], strict=True)) == expected
