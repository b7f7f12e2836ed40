"""Models at work: scores of images and of features agree, and predictions are those of plain Keras."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import GREY, KEPT
from tests.support.numpy_network import load_classes
from tlray.cluster import session
from tlray.core.errors import JobError, UserError
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.training.finetune import finetune


def test_evaluation_of_images_and_of_features_agree(features, digits, model, ray, tmp_path):
    on_features = evaluate(model, features, out=tmp_path / "a")
    on_images = evaluate(model, digits, out=tmp_path / "b", precision="float32")
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


def test_evaluation_refuses_features_of_another_provenance(digits, model, ray, tmp_path):
    extract(digits / "test", tmp_path / "set", GREY)
    with pytest.raises(UserError, match="backbone grey-pixels, not vgg16"):
        evaluate(model, tmp_path / "set", out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_model_loads_in_plain_keras_and_takes_images_of_any_size(digits, model, ray, tmp_path):
    code = """
import sys, numpy as np, keras
from PIL import Image
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
for size in (64, 64), (200, 120), (31, 47):
    image = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize(size), "uint8")
    print(*model.predict(image[None], verbose=0)[0])
"""
    path = next(digits.glob("test/3/*.png"))
    command = [sys.executable, "-c", code, model / "model.keras", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    plain = np.array([line.split() for line in done.stdout.splitlines()], float)
    assert plain.shape == (3, 10)
    np.testing.assert_allclose(plain.sum(axis=1), 1, atol=1e-5)
    result = predict(model, path)
    probabilities = [result.probabilities[str(digit)] for digit in range(10)]
    np.testing.assert_allclose(probabilities, plain[0], atol=1e-3)
    assert (result.predicted, result.label) == (str(int(plain[0].argmax())), None)


def test_predictions_are_one_table_with_every_image(digits, model, ray, tmp_path):
    """Beside the true class, for the images of which it is known; copies and a single image say the same."""
    folder, truth = tmp_path / "images", {"bad.png": "3"}
    folder.mkdir()
    for number, path in enumerate(digits.glob("test/*/*.png")):
        (folder / path.name).symlink_to(path)
        truth[path.name] = path.parent.name if number % 2 else None
    (folder / "bad.png").write_bytes(b"")
    listed = folder / "labels.parquet"
    pq.write_table(pa.table({"path": list(truth), "label": list(truth.values())}), listed)
    out, copies = tmp_path / "predictions.parquet", tmp_path / "copies"
    result = predict(model, listed, out, precision="float32", annotate=str(copies))
    assert (result.images, result.rows, result.errors) == (61, 60, 1)
    table = pq.read_table(out).to_pandas()
    assert list(table.columns[:5]) == ["path", "split", "label", "predicted", "probability"]
    assert list(table.columns[5:]) == [f"probability_{digit}" for digit in range(10)]
    labels = pq.read_table(out, columns=["path", "label"]).to_pydict()
    assert {**dict(zip(*labels.values(), strict=True)), "bad.png": "3"} == truth
    assert np.mean(table["predicted"] == table["label"]) > 0.3  # Half of them have a label.
    values = table.iloc[:, 5:].to_numpy()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    assert list(table["predicted"]) == [str(best) for best in values.argmax(axis=1)]
    np.testing.assert_array_equal(table["probability"], values.max(axis=1))
    assert pq.read_table(tmp_path / "predictions.errors.parquet")["path"].to_pylist() == ["bad.png"]
    assert {path.name for path in copies.iterdir()} == {*table["path"], ".tlray.json"}
    names = {"copies", "images", "predictions.errors.parquet", "predictions.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(UserError, match="lies among the images"):
        predict(model, folder, tmp_path / "other.csv", annotate=str(folder))
    top = tmp_path / "top.csv"
    predict(model, listed, top, precision="float32", top=2)
    rows = pa.csv.read_csv(top).to_pandas()
    assert list(rows.columns[5:]) == ["predicted_1", "probability_1", "predicted_2", "probability_2"]
    np.testing.assert_allclose(rows["probability_1"], table["probability"], atol=1e-6)
    with pytest.raises(UserError, match="already exists"):
        predict(model, folder, out)

    # A single image: its JSON and its copy say what the row of the table says.
    row = max(pq.read_table(out).to_pylist(), key=lambda row: row["probability"])
    settings = {"precision": "float32", "annotate": str(tmp_path / "copy")}
    one = predict(model, folder / row["path"], **settings).to_json()
    assert {name: one[name] for name in row if name in one} == {
        **{"path": row["path"], "split": None, "label": None, "predicted": row["predicted"]},
        "probability": pytest.approx(row["probability"], abs=1e-5),
    }
    assert one["probabilities"] == pytest.approx(
        {digit: row[f"probability_{digit}"] for digit in one["probabilities"]}, abs=1e-5
    )
    assert (tmp_path / "copy" / row["path"]).read_bytes() == (copies / row["path"]).read_bytes()


def test_predicting_bad_images_only_is_a_failed_job(model, ray, tmp_path, monkeypatch):
    monkeypatch.setattr("tlray.evaluation.model_inference.loader", lambda *given: load_classes)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    with pytest.raises(JobError, match="none of these 1 images"):
        predict(model, tmp_path / "images", tmp_path / "p.csv", max_bad_fraction=1)
    assert not (tmp_path / "p.csv").exists()


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
    assert done.stdout.split()[:2] == ["refused", str(sum(KEPT.values()))], done.stderr
    assert done.returncode == 0, done.stderr


def test_without_an_image_no_job_waits_for_ray(model, monkeypatch, tmp_path):
    monkeypatch.setattr(session, "connect", lambda *_, **__: pytest.fail("Ray was started"))
    empty, out = tmp_path / "empty", tmp_path / "out.csv"
    empty.mkdir()
    for job in (
        lambda: extract(empty, out, backbone="grey-pixels"),
        lambda: predict(model, empty, out),
        lambda: evaluate(model, empty),
        lambda: finetune(empty, out, model=model),
    ):
        with pytest.raises(UserError, match="no image in"):
            job()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
