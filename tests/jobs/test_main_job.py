"""The main job end to end: real images, real weights, a local Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import ROOT
from tests.support.bad_files import encode, photo, write_bad_files
from tlray.cluster import session
from tlray.core.config import EvaluateConfig, ExtractConfig, FinetuneConfig, FitConfig, PredictConfig
from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.features.plan import plan
from tlray.features.verify import verify
from tlray.images import decoder
from tlray.images.bad_image import BadImage
from tlray.images.diff import Changes
from tlray.images.index_writer import IndexWriter
from tlray.images.listing import Images, Listed
from tlray.models.compiled import fastest_precision
from tlray.models.interfaces import Head
from tlray.recipes.demo import write_digits
from tlray.training.finetune import finetune
from tlray.training.fit import fit

pytestmark = pytest.mark.slow

CONFIG = ExtractConfig(image_size=64, precision="float32", max_bad_fraction=0.5)
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "cats-dogs" / "train"
ROWS = 301
"""No batch size divides it."""


@pytest.fixture(scope="module")
def ray():
    """One local Ray for all tests of this file; it is stopped at the end."""
    with session.connect(None, cpus=4) as connected:
        connected()
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """301 training, some validation and test digits, and more than a hundred odd files in a class."""
    folder = tmp_path_factory.mktemp("images")
    write_digits(str(folder))
    kept = {"train": ROWS, "validation": 60, "test": 60}
    for split, count in kept.items():
        files = sorted(folder.glob(f"{split}/*/*.png"), key=lambda path: path.name)
        for path in files[count:]:
            path.unlink()
    return folder


@pytest.fixture(scope="module")
def features(images, ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("features") / "set"
    extract(str(images), str(out), CONFIG)
    return out


@pytest.fixture(scope="module")
def model(features, ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "dense"
    fit(str(features), str(out), FitConfig(epochs=8))
    return out


def read(features: Path) -> dict[str, np.ndarray]:
    """Features by path, with plain pyarrow; a path that stands there twice is an error."""
    found = {}
    for part in sorted(features.glob("part-*.parquet")):
        table = pq.read_table(part)
        values = table["features"].combine_chunks().to_numpy_ndarray()
        for path, value in zip(table["path"].to_pylist(), values, strict=True):
            assert path not in found
            found[path] = value
    return found


def weights(model: Path) -> list[np.ndarray]:
    import keras

    return keras.saving.load_model(model / "model.keras").get_layer("head").get_weights()


def reference(images: Path, paths: list[str]) -> np.ndarray:
    """The features as a user's own script makes them with keras.applications."""
    import keras

    from tlray.models import registry
    from tlray.models.frozen import FrozenPart

    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    network.set_weights(FrozenPart.decide(CONFIG).arrays)
    assert registry.find("backbones", "vgg16").package == "tlray"
    pixels = [
        np.asarray(Image.open(images / path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
        for path in paths
    ]
    prepared = keras.applications.vgg16.preprocess_input(np.stack(pixels).astype("float32"))
    return network.predict(prepared, verbose=0)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_float32_features_are_those_of_keras_applications(features, images):
    found = read(features)
    paths = sorted(found)[::7]
    assert relative(np.stack([found[path] for path in paths]), reference(images, paths)) < 1e-5


def test_features_have_every_image_once_and_say_what_made_them(features, images):
    found = read(features)
    files = {str(path.relative_to(images)) for path in images.rglob("*.png")}
    assert set(found) == files
    manifest = json.loads((features / "manifest.json").read_text())
    assert manifest["images"] == manifest["rows"] == len(files)
    assert manifest["splits"] == {"test": 60, "train": ROWS, "validation": 60}
    assert manifest["classes"] == list("0123456789")
    assert manifest["feature_shape"] == [2, 2, 512]
    metadata = json.loads(pq.read_schema(features / "part-00000.parquet").metadata[b"tlray"])
    assert metadata["classes"] == manifest["classes"]
    assert metadata["versions"]["keras"]
    assert metadata["job"]["provenance"].items() < manifest["provenance"].items()
    assert metadata["job"]["provenance"]["cut"] == "block5_pool"
    assert manifest["provenance"]["weights_sha256"].startswith("d9a27cc1")


def test_reduced_precision_is_near(features, images, ray, tmp_path):
    extract(str(images), str(tmp_path / "set"), replace(CONFIG, precision="bfloat16", store="float16"))
    found, expected = read(tmp_path / "set"), read(features)
    both = (np.stack([rows[path] for path in sorted(expected)]) for rows in (found, expected))
    assert 0 < relative(*both) < 2e-2  # Drawn digits are far from photographs: see the next test.


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
        config = ExtractConfig(precision=precision)
        extract(str(photographs), str(tmp_path / precision), config)
        rows = read(tmp_path / precision)
        sets[precision] = np.stack([rows[path] for path in sorted(rows)])
    assert 0 < relative(sets["bfloat16"], sets["float32"]) < 5e-3


@pytest.mark.parametrize(("cut", "shape"), [("block4_conv3", [8, 8, 512]), ("block1_pool", [32, 32, 64])])
def test_any_layer_can_be_the_cut(cut, shape, images, ray, tmp_path):
    extract(str(images / "test" / "3"), str(tmp_path / "set"), replace(CONFIG, cut=cut))
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["feature_shape"] == shape


def test_bad_files_become_errors_and_nothing_is_lost(images, features, ray, tmp_path):
    mixed = tmp_path / "images"
    for path in images.glob("test/*/*.png"):
        target = mixed / path.relative_to(images / "test")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    expected = write_bad_files(mixed / "3")
    out = str(tmp_path / "set")
    with pytest.raises(JobError, match="max-bad-fraction"):
        extract(str(mixed), out, replace(CONFIG, max_bad_fraction=0.01))
    assert not (tmp_path / "set" / "manifest.json").exists()
    found = extract(str(mixed), out, CONFIG)
    rows = read(tmp_path / "set")
    errors = pq.read_table(tmp_path / "set" / "errors").to_pydict()
    assert found.rows == len(rows)
    assert found.errors == len(errors["path"])
    assert found.images == found.rows + found.errors == 60 + len(expected)
    stages = dict(zip(errors["path"], errors["stage"], strict=True))
    assert len(stages) == len(errors["path"])
    outcome = {f"3/{name}": what for name, what in expected.items() if what != "ok"}
    assert sorted(stages.values()) == sorted(outcome.values())
    assert all(errors["message"])
    known = read(features)
    for path, value in rows.items():
        if f"test/{path}" in known:
            np.testing.assert_allclose(value, known[f"test/{path}"], rtol=1e-3, atol=1e-3)


def test_two_thousand_damaged_files_become_rows_or_errors(ray, tmp_path):
    random = np.random.default_rng(0)
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
    whole = [encode(photo(size=(24, 20)), kind) for kind in kinds]
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2000):
        data = np.frombuffer(whole[number % len(whole)], np.uint8).copy()
        data[random.integers(0, len(data), random.integers(0, 9))] ^= random.integers(1, 256, dtype=np.uint8)
        end = random.integers(0, len(data)) if random.random() < 0.2 else len(data)
        (images / f"{number:04d}.jpg").write_bytes(data[:end].tobytes())
    config = ExtractConfig(backbone="grey-pixels", image_size=8, max_bad_fraction=1)
    found = extract(str(images), str(tmp_path / "set"), config)
    rows = read(tmp_path / "set")
    errors = pq.read_table(tmp_path / "set" / "errors")["path"].to_pylist()
    assert sorted([*rows, *errors]) == sorted(path.name for path in images.iterdir())
    assert (found.rows, found.errors) == (len(rows), len(errors))
    assert min(len(rows), len(errors)) > 200
    for path in images.iterdir():
        try:
            decoder.decode(path.read_bytes(), 8)
        except BadImage:
            assert path.name in errors
        else:
            assert path.name in rows


def test_the_largest_image_is_for_the_user_to_say(ray, tmp_path):
    images, out = tmp_path / "images", tmp_path / "set"
    images.mkdir()
    for side in (20, 21):
        (images / f"{side}.png").write_bytes(encode(photo(size=(side, side)), "PNG"))
    config = ExtractConfig(backbone="grey-pixels", image_size=8, max_bad_fraction=1, max_pixels=400)
    extract(str(images), str(out), config)
    errors = pq.read_table(out / "errors").to_pydict()
    assert (errors["path"], errors["error"]) == (["21.png"], ["DecompressionBomb"])
    with pytest.raises(UserError, match="max_pixels 400, not 500"):
        extract(str(images), str(out), replace(config, max_pixels=500))


def test_nothing_is_unpickled_from_a_feature_set_a_model_or_a_recipe(features, model):
    code = """
import os, pickle, sys
from tlray.core.runtime import prepare_keras
prepare_keras()
import keras.src.saving.saving_lib
from tlray.features import feature_set, part_files
from tlray.recipes import recipe
from tlray.models.model import NETWORK, Model, load

def refuse(event, arguments):
    if event == "pickle.find_class":
        raise PermissionError(f"unpickled {arguments}")

sys.addaudithook(refuse)
try:
    pickle.loads(pickle.dumps(os.getcwd))
except PermissionError:
    print("refused")
features, model = sys.argv[1:]
data = feature_set.FeatureSet.open(features)
print(sum(len(rows.paths) for rows in data.batches()), part_files.read_errors(data.folder, 99).num_rows)
print(len(load(Model.open(model).folder.read(NETWORK)).layers))
print(len(recipe.read("vgg16-features").stages))
"""
    command = [sys.executable, "-c", code, features, model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split()[:2] == ["refused", str(ROWS + 120)], done.stderr
    assert done.returncode == 0, done.stderr


def test_finished_work_is_kept_and_the_rest_is_done(images, features, ray, tmp_path):
    out = tmp_path / "set"
    extract(str(images), str(out), CONFIG)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert extract(str(images), str(out), CONFIG).was_complete
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    (out / ".part-00001.parquet.0.tmp").write_bytes(b"half a file")  # of a writer that was killed
    extract(str(images), str(out), CONFIG)
    again = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert {name for name in times if times[name] != again[name]} == {"part-00001.parquet"}
    expected = read(features)
    assert all(np.array_equal(value, expected[path]) for path, value in read(out).items())
    with pytest.raises(UserError, match="cut block5_pool, not block4_pool"):
        extract(str(images), str(out), replace(CONFIG, cut="block4_pool"))


def test_work_goes_on_while_images_are_listed_and_after_the_listing_failed(
    images, ray, tmp_path, monkeypatch
):
    """A piece of the index has 8,192 images; what comes after it is listed while those are worked on."""
    source, out = tmp_path / "many", tmp_path / "set"
    picture = next(images.glob("train/*/*.png"))
    for number in range(8300):
        path = source / f"{number // 1000}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(picture, path)
    config = ExtractConfig(backbone="grey-pixels", image_size=8)

    def fails(self: Images, walk=Images._walk) -> Iterator[Listed]:
        for number, image in enumerate(walk(self)):
            if number == 8250:
                time.sleep(2)
                raise UserError("cannot list the folder")
            yield image

    with monkeypatch.context() as patched:
        patched.setattr(Images, "_walk", fails)
        with pytest.raises(JobError, match="cannot list the folder"):
            extract(str(source), str(out), config)
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    found = extract(str(source), str(out), config)
    assert (found.images, found.rows, found.errors) == (8300, 8300, 0)
    assert len(read(out)) == 8300
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(os.listdir(out / "index")) == ["part-00000.parquet", "part-00001.parquet"]


def test_images_that_came_later_are_extracted_alone(images, features, ray, tmp_path):
    """And until they all are, a set that was finished is what it was."""
    source, out = tmp_path / "images", tmp_path / "set"
    shutil.copytree(images, source)
    late = sorted(source.glob("train/*/*.png"))[::4] + sorted(source.glob("test/3/*"))
    for path in late:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    extract(str(source), str(out), CONFIG)
    before = {path: path.read_bytes() for path in out.glob("part-*")}
    (source / "train" / "0" / "bad.png").write_bytes(b"")
    for path in late:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)
    replaced, removed = sorted(source.glob("validation/*/*.png"))[:2]
    shutil.copy(images / "test" / "1" / os.listdir(images / "test" / "1")[0], replaced)
    removed.unlink()
    changes = Changes(added=0, replaced=1, removed=1, replaced_paths=[str(replaced.relative_to(source))])
    job = json.loads((out / "manifest.json").read_text())["job"]
    IndexWriter.start(
        Folder.open(str(out)), Images.open(str(source)), 32, job, extend=True
    )  # A run that is killed.
    found = verify(str(out), str(source), sample=4)
    assert (found.rows, found.changes) == (ROWS + 120 - len(late), changes)
    assert extract(str(source), str(out), CONFIG).errors == 1
    expected = read(features)
    kept = read(out)
    assert set(kept) == set(expected)
    assert relative(np.stack([kept[path] for path in expected]), np.stack(list(expected.values()))) < 1e-6
    assert {path: path.read_bytes() for path in before} == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["images"], manifest["rows"], manifest["errors"]) == (ROWS + 121, ROWS + 120, 1)
    again = extract(str(source), str(out), CONFIG, extend=True)
    assert (again.changes, again.images_per_second) == (changes, 0)
    assert again.was_complete
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_an_error_file_of_a_writer_that_was_killed_does_no_harm(images, ray, tmp_path):
    """It may have seen an image fail that can be read now; the part file is what counts."""
    out = tmp_path / "set"
    extract(str(images), str(out), CONFIG)
    errors = pq.read_table(out / "errors" / "part-00000.parquet")
    one = pa.table({name: pa.array(["x"]) for name in errors.schema.names}, schema=errors.schema)
    (out / "manifest.json").unlink()
    # Not the first shard, which writes its errors always.
    (out / "part-00001.parquet").unlink()
    pq.write_table(one, out / "errors" / "part-00001.parquet")
    assert extract(str(images), str(out), CONFIG).errors == 0


def test_a_missing_row_is_noticed(features, tmp_path):
    out = tmp_path / "set"
    subprocess.run(["cp", "-r", features, out], check=True)
    part = out / "part-00000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    (out / "manifest.json").unlink()
    manifest = json.loads((features / "manifest.json").read_text())
    with pytest.raises(JobError, match=r"127 rows, and .* has 0, for 128 images"):
        extract(manifest["job"]["images"], str(out), CONFIG)


def test_one_two_and_three_workers_give_the_same_weights(features, ray, tmp_path):
    config = FitConfig(head="linear", epochs=3, batch_size=32)
    found = {}
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        history = fit(str(features), str(out), replace(config, workers=workers)).history
        found[workers] = (weights(out), history)
    for workers in (2, 3):
        for one, many in zip(found[1][0], found[workers][0], strict=True):
            np.testing.assert_allclose(many, one, atol=1e-5)
        for one, many in zip(found[1][1], found[workers][1], strict=True):
            assert many == pytest.approx(one, rel=1e-4)


class Normalised(Head):
    """A head whose layers see the statistics of a batch."""

    name = "normalised"

    def build(self, feature_shape, classes):
        import keras

        layers = keras.layers
        hidden = [layers.Flatten(), layers.Dense(16), layers.BatchNormalization(), layers.Activation("relu")]
        return keras.Sequential([keras.Input(feature_shape), *hidden, layers.Dense(classes, "softmax")])


def test_batch_statistics_are_those_of_all_workers_rows(features, ray, tmp_path, monkeypatch):
    """The moments, their gradients and the moving averages, the padded last batch included."""
    monkeypatch.setattr("tlray.models.registry.head", lambda name: Normalised())
    config = FitConfig(head="normalised", epochs=2, batch_size=32, optimizer="sgd", learning_rate=1e-3)
    for workers in (1, 2):
        fit(str(features), str(tmp_path / str(workers)), replace(config, workers=workers))
    for one, two in zip(weights(tmp_path / "1"), weights(tmp_path / "2"), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=1e-4)


def test_dropout_repeats_exactly_for_the_same_number_of_workers(features, ray, tmp_path):
    config = FitConfig(epochs=2, workers=2)
    for name in ("a", "b"):
        fit(str(features), str(tmp_path / name), config)
    for first, second in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(first, second)


def test_early_stopping_keeps_the_best_epoch_and_tensorboard_is_written(features, ray, tmp_path):
    config = FitConfig(head="linear", epochs=40, learning_rate=0.05, early_stopping=2, tensorboard=True)
    found = fit(str(features), str(tmp_path / "model"), config)
    losses = [epoch["val_loss"] for epoch in found.history]
    assert found.epochs == len(losses) < 40
    assert found.kept_epoch == 1 + int(np.argmin(losses)) == len(losses) - 2
    assert found.metrics["val_loss"] == min(losses)
    # In a folder named by date and time, with the weights' histograms.
    (events,) = (tmp_path / "model" / "tensorboard").glob("20*-*/train/events.out.tfevents*")
    assert b"histogram" in events.read_bytes()


def test_validation_rows_are_held_out_after_a_split(images, ray, tmp_path):
    """The two must not draw from the same hash: the training rows have its lower values."""
    extract(str(images / "train"), str(tmp_path / "set"), replace(CONFIG, split=0.75))
    (tmp_path / "model" / ".training" / "training").mkdir(parents=True)  # of a run that was killed
    found = fit(
        str(tmp_path / "set"), str(tmp_path / "model"), FitConfig(head="linear", epochs=1, validation=0.2)
    )
    total = found.rows + found.validation_rows
    assert total == json.loads((tmp_path / "set" / "manifest.json").read_text())["splits"]["train"]
    assert 0.1 < found.validation_rows / total < 0.3
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        *("history.csv", "manifest.json", "model.keras")
    ]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.keras").write_bytes(b"of the user's own")
    with pytest.raises(UserError, match="is no model of tlray"):
        fit(str(tmp_path / "set"), str(tmp_path / "own"), FitConfig(head="linear", epochs=1))
    assert (tmp_path / "own" / "model.keras").read_bytes() == b"of the user's own"


def test_predicting_bad_images_only_is_a_failed_job(model, ray, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    with pytest.raises(JobError, match="none of these 1 images"):
        predict(
            str(model), str(tmp_path / "images"), str(tmp_path / "p.csv"), PredictConfig(max_bad_fraction=1)
        )
    assert not (tmp_path / "p.csv").exists()


def test_the_model_folder_is_complete_and_repeats_its_result(features, model):
    names = {path.name for path in model.iterdir()}
    assert {"model.keras", "manifest.json", "history.csv"} <= names <= {*names, "report"}
    header, *lines = (model / "history.csv").read_text().splitlines()
    assert header == "epoch,loss,accuracy,val_loss,val_accuracy"
    assert [line.partition(",")[0] for line in lines] == [str(epoch) for epoch in range(1, 9)]
    again = fit(str(features), str(model), FitConfig(epochs=8))
    assert again.was_complete
    assert len(again.history) == 8
    with pytest.raises(UserError, match="another job"):
        fit(str(features), str(model), FitConfig(epochs=9))


def test_evaluation_of_images_and_of_features_agree(features, images, model, ray, tmp_path):
    on_features = evaluate(str(model), str(features), EvaluateConfig(), out=str(tmp_path / "a"))
    config = EvaluateConfig(precision="float32")
    on_images = evaluate(str(model), str(images), config, out=str(tmp_path / "b"))
    assert on_features.split == on_images.split == "test"
    assert on_features.images == on_images.images == 60
    assert on_features.confusion_matrix == on_images.confusion_matrix
    assert on_features.loss == pytest.approx(on_images.loss, rel=1e-4)
    assert on_features.accuracy > 0.7
    report = {path.name for path in (tmp_path / "b").iterdir()}
    assert report == {"report.json", "index.html", "confusion_matrix.png", "curves.png"}
    written = json.loads((tmp_path / "b" / "report.json").read_text())
    assert written["accuracy"] == on_images.accuracy
    wrong = 60 - sum(on_images.confusion_matrix[n][n] for n in range(10))
    assert len(on_images.mistakes) == wrong
    assert all(mistake.thumbnail for mistake in on_images.mistakes)


def test_evaluation_refuses_features_of_another_provenance(images, model, ray, tmp_path):
    extract(str(images), str(tmp_path / "set"), replace(CONFIG, preprocess="rescale"))
    with pytest.raises(UserError, match="preprocess rescale, not imagenet"):
        evaluate(str(model), str(tmp_path / "set"), EvaluateConfig(), out=str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_model_loads_in_plain_keras_and_takes_images_of_any_size(images, model, ray, tmp_path):
    code = """
import sys, numpy as np, keras
from PIL import Image
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
for size in (64, 64), (200, 120), (31, 47):
    image = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize(size), "uint8")
    print(*model.predict(image[None], verbose=0)[0])
"""
    path = next(images.glob("test/3/*.png"))
    command = [sys.executable, "-c", code, model / "model.keras", path]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.splitlines()
    plain = np.array([line.split() for line in lines], float)
    assert plain.shape == (3, 10)
    np.testing.assert_allclose(plain.sum(axis=1), 1, atol=1e-5)
    one = predict(model, path)
    np.testing.assert_allclose([one.probabilities[str(digit)] for digit in range(10)], plain[0], atol=1e-3)
    assert (one.predicted, one.label) == (str(int(plain[0].argmax())), None)


def test_predictions_are_one_table_with_every_image(images, model, ray, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.glob("test/*/*.png"):
        (folder / path.name).symlink_to(path)
    (folder / "bad.png").write_bytes(b"")
    out, copies = tmp_path / "predictions.parquet", tmp_path / "copies"
    config = PredictConfig(precision="float32", annotate=str(copies))
    found = predict(str(model), str(folder), str(out), config)
    assert (found.images, found.rows, found.errors) == (61, 60, 1)
    table = pq.read_table(out).to_pandas()
    assert list(table.columns[:5]) == ["path", "split", "label", "predicted", "probability"]
    assert list(table.columns[5:]) == [f"probability_{digit}" for digit in range(10)]
    assert table["label"].isna().all()
    assert sorted(table["path"]) == sorted(path.name for path in folder.iterdir() if path.name != "bad.png")
    values = table.iloc[:, 5:].to_numpy()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    assert list(table["predicted"]) == [str(best) for best in values.argmax(axis=1)]
    np.testing.assert_array_equal(table["probability"], values.max(axis=1))
    assert pq.read_table(tmp_path / "predictions.errors.parquet")["path"].to_pylist() == ["bad.png"]
    assert {path.name for path in copies.iterdir()} == set(table["path"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("copies", "images", "predictions.errors.parquet", "predictions.parquet")
    ]
    with pytest.raises(UserError, match="folder of the images"):
        predict(str(model), str(folder), str(out) + ".csv", PredictConfig(annotate=str(folder)))
    top = tmp_path / "top.csv"
    predict(str(model), str(folder), str(top), PredictConfig(precision="float32", top=2))
    rows = pa.csv.read_csv(top).to_pandas()
    assert list(rows.columns[5:]) == ["predicted_1", "probability_1", "predicted_2", "probability_2"]
    np.testing.assert_allclose(rows["probability_1"], table["probability"], atol=1e-6)
    with pytest.raises(UserError, match="already exists"):
        predict(str(model), str(folder), str(out), PredictConfig())


def test_without_an_image_no_job_waits_for_ray(model, monkeypatch, tmp_path):
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "connect", connect)
    empty, out = str(tmp_path / "empty"), str(tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    for job in (
        lambda: predict(str(model), empty, out, PredictConfig()),
        lambda: evaluate(str(model), empty, EvaluateConfig()),
        lambda: finetune(empty, out, FinetuneConfig(), model=str(model)),
    ):
        with pytest.raises(UserError, match="no image in"):
            job()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_table_of_paths_with_labels_and_splits(images, ray, tmp_path):
    paths = sorted(images.glob("test/[37]/*.png"))
    rows = "".join(
        f"{path},seven-{path.parent.name},{'val' if n % 2 else 'train'}\n" for n, path in enumerate(paths)
    )
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    found = extract(str(tmp_path / "list.csv"), str(tmp_path / "set"), CONFIG)
    assert found.rows == len(paths)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["classes"] == ["seven-3", "seven-7"]
    assert set(manifest["splits"]) == {"train", "validation"}


def test_verify_finds_a_changed_image_and_plan_adds_up(features, images, tmp_path):
    found = verify(str(features), str(images), sample=40)
    assert found.sample == 40
    assert found.largest_error < 1e-5
    changed = tmp_path / "images"
    subprocess.run(["cp", "-r", images, changed], check=True)
    for path in changed.rglob("*.png"):
        Image.open(path).rotate(90).save(path)
    with pytest.raises(JobError, match="do not match their images"):
        verify(str(features), str(changed), sample=40)
    (changed / "test" / "3").rename(tmp_path / "gone")
    planned = plan(str(images), CONFIG, sample=16)
    assert planned.images == 421
    assert planned.sample == 16
    assert planned.bytes_read == sum(path.stat().st_size for path in images.rglob("*.png"))
    assert planned.seconds == pytest.approx(421 / planned.images_per_second, rel=0.02, abs=0.1)
    assert planned.gpu_hours == 0 or planned.gpus > 0
    written = sum(path.stat().st_size for path in features.glob("part-*"))
    assert planned.bytes_written == pytest.approx(written, rel=0.5)


def _tlray(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "tlray", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def _wait_for(condition, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def _children_of_session(session: int) -> list[str]:
    """Command lines of the processes of a session, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):
            continue
    return found


def _left_in_home(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*")]


@pytest.mark.cluster
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_leaves_nothing_behind_and_goes_on(how, images, features, tmp_path):
    home, out = tmp_path / "home", tmp_path / "set"
    home.mkdir()
    # A short one: Ray's sockets lie below it, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="t") as temporary:
        _interrupt(how, images, features, home, Path(temporary), out)


def _interrupt(
    how: signal.Signals, images: Path, features: Path, home: Path, temporary: Path, out: Path
) -> None:
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary)}
    command = ("extract", images, "--out", out, "--image-size", 64, "--precision", "float32", "--json")
    first = _tlray(*command, env=environment, start_new_session=True)
    _wait_for(lambda: list(out.glob("part-*")) or first.poll() is not None)
    first.send_signal(how)
    _, errors = first.communicate(timeout=60)
    if how == signal.SIGINT:
        assert first.returncode == 130, errors
        assert errors.strip().splitlines()[-1] == "tlray: stopped; run the same command again to finish"
        assert "Traceback" not in errors
    again = _tlray(*command, env=environment, start_new_session=True)
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert json.loads(output)["rows"] == 421

    def gone() -> bool:
        left = [*_children_of_session(again.pid), *_children_of_session(first.pid)]
        # After SIGKILL two of Ray's agents take up to a minute to notice.
        return all(how == signal.SIGKILL and "Agent" in process for process in left)

    _wait_for(gone, 10)  # On a busy machine the end of a process takes its time.
    assert _left_in_home(home) == []
    assert {path.name for path in temporary.iterdir()} <= {"ray"}
    expected = read(features)
    assert all(np.array_equal(value, expected[path]) for path, value in read(out).items())
    assert not list(out.glob(".*"))


def test_the_results_are_followed_where_the_command_runs(images, ray, tmp_path):
    """There Ctrl-C ends Ray Data; followed elsewhere it outlives Ray, which then ends the process."""
    followed = set()

    def progress(done: int, total: int) -> None:
        followed.add(threading.current_thread())

    config = replace(CONFIG, backbone="grey-pixels")
    extract(str(images), str(tmp_path / "set"), config, progress=progress)
    assert followed == {threading.current_thread()}


ALONE = """
import os, signal, sys
from tlray.training import fit
from tlray.core.config import FitConfig
fit._CHECKPOINT_SECONDS = 0
def report(metrics):
    if metrics["epoch"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
fit.fit(sys.argv[1], sys.argv[2], FitConfig(epochs=8), report=report)
"""
"""`tlray fit` with a checkpoint after each epoch, killed before that of the fifth."""


def test_one_worker_without_ray_gives_the_same_and_goes_on_after_a_kill(features, model, tmp_path):
    killed = subprocess.run([sys.executable, "-c", ALONE, features, tmp_path / "model"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model" / "manifest.json").exists()
    again = _tlray(
        "fit", features, "--out", tmp_path / "model", "--epochs", 8, "--json", start_new_session=True
    )
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    # It did not begin anew, and no Ray was started.
    assert [line.split()[1] for line in errors.splitlines()] == ["5/8", "6/8", "7/8", "8/8"]
    assert _children_of_session(again.pid) == []
    assert json.loads(output)["time"]["training"] > 0
    assert sorted(os.listdir(tmp_path / "model")) == ["history.csv", "manifest.json", "model.keras"]
    for one, other in zip(weights(tmp_path / "model"), weights(model), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
