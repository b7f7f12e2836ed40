"""Features of a real network with real weights: they are those that a script with Keras makes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import ROOT
from tests.jobs.conftest import KEPT, VGG16
from tests.support.outputs import read, relative
from tlray.core.errors import JobError
from tlray.features.extract import extract
from tlray.features.plan import plan
from tlray.features.verify import verify
from tlray.models import registry
from tlray.models.compiled import fastest_precision
from tlray.models.frozen import FrozenPart

PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "cats-dogs" / "train"


def reference(images: Path, paths: list[str]) -> np.ndarray:
    """The features as a user's own script makes them with keras.applications."""
    import keras

    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    network.set_weights(FrozenPart.decide(VGG16).arrays)
    assert registry.find("backbones", "vgg16").package == "tlray"
    pictures = (Image.open(images / path).convert("RGB") for path in paths)
    pixels = [np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)) for picture in pictures]
    prepared = keras.applications.vgg16.preprocess_input(np.stack(pixels).astype("float32"))
    return network.predict(prepared, verbose=0)


def test_float32_features_are_those_of_keras_applications(features, digits):
    rows = read(features)
    paths = sorted(rows)[::7]
    assert relative(np.stack([rows[path] for path in paths]), reference(digits, paths)) < 1e-5


def test_features_have_every_image_once_and_say_what_made_them(features, digits):
    files = {str(path.relative_to(digits)) for path in digits.rglob("*.png")}
    assert set(read(features)) == files
    manifest = json.loads((features / "manifest.json").read_text())
    assert manifest["images"] == manifest["rows"] == len(files)
    assert manifest["splits"] == KEPT
    assert manifest["classes"] == list("0123456789")
    assert manifest["feature_shape"] == [2, 2, 512]
    metadata = json.loads(pq.read_schema(features / "part-00000.parquet").metadata[b"tlray"])
    assert metadata["classes"] == manifest["classes"]
    assert metadata["versions"]["keras"]
    assert metadata["job"]["provenance"].items() < manifest["provenance"].items()
    assert metadata["job"]["provenance"]["cut"] == "block5_pool"
    assert manifest["provenance"]["weights_sha256"].startswith("d9a27cc1")


def test_reduced_precision_is_near(features, digits, ray, tmp_path):
    out = tmp_path / "set"
    extract(digits / "test", out, VGG16, precision="bfloat16", store="float16")
    rows, expected = read(out), read(features)
    both = zip(*((row, expected[f"test/{path}"]) for path, row in rows.items()), strict=True)
    # Drawn digits are far from photographs: see the next test.
    assert 0 < relative(*map(np.stack, both)) < 2e-2


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs the photographs beside the clone")
def test_bfloat16_of_photographs_is_within_5e_3(ray, tmp_path):
    """Where hardware has it; what emulates it, as oneDNN does elsewhere, rounds more often."""
    if fastest_precision() != "bfloat16":
        pytest.skip("this machine has no bfloat16")
    photographs = tmp_path / "images"
    photographs.mkdir()
    for path in sorted(PHOTOGRAPHS.rglob("*.jpg"))[::20]:
        (photographs / path.name).symlink_to(path.resolve())
    sets = {}
    for precision in ("float32", "bfloat16"):
        extract(photographs, tmp_path / precision, precision=precision)
        rows = read(tmp_path / precision)
        sets[precision] = np.stack([rows[path] for path in sorted(rows)])
    assert 0 < relative(sets["bfloat16"], sets["float32"]) < 5e-3


def test_verify_finds_a_changed_image_and_plan_adds_up(features, digits, tmp_path):
    verification = verify(features, digits, sample=40)
    assert (verification.sample, verification.largest_error < 1e-5) == (40, True)
    changed = shutil.copytree(digits, tmp_path / "images")
    for path in changed.rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    with pytest.raises(JobError, match="do not match their images"):
        verify(features, changed, sample=40)
    planned = plan(digits, VGG16, sample=16)
    assert (planned.images, planned.sample) == (sum(KEPT.values()), 16)
    assert planned.bytes_read == sum(path.stat().st_size for path in digits.rglob("*.png"))
    assert planned.seconds == pytest.approx(planned.images / planned.images_per_second, rel=0.02, abs=0.1)
    assert planned.gpu_hours == 0 or planned.gpus > 0
    written = sum(path.stat().st_size for path in features.glob("part-*"))
    assert planned.bytes_written == pytest.approx(written, rel=0.5)
