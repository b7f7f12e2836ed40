"""Damaged files, and numbers that are not finite: each command that meets them fails and names them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.conftest import GREY
from tlray.core.errors import DivergenceError, JobError
from tlray.evaluation.evaluate import evaluate
from tlray.evaluation.predict import predict
from tlray.features.extract import extract
from tlray.features.feature_set import FeatureSet
from tlray.features.verify import verify
from tlray.models.builtin.heads import Linear
from tlray.models.model import Model
from tlray.training.finetune import finetune
from tlray.training.fit import fit


@pytest.fixture(scope="module")
def head(grey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on the features of the pictures."""
    out = tmp_path_factory.mktemp("head") / "model"
    fit(grey / "set", out, head="linear", epochs=1)
    return out


@pytest.fixture
def copy(grey: Path, tmp_path: Path) -> Path:
    """The features of the pictures, to be damaged."""
    return shutil.copytree(grey / "set", tmp_path / "set")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def failure(command: Callable[[], object], message: str, error: type[JobError] = JobError) -> str:
    with pytest.raises(error, match=message) as caught:
        command()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


READERS: dict[str, Callable[[Path, Path, Path, Path], Any]] = {
    "fit": lambda features, images, model, out: fit(features, out / "new", head="linear", epochs=1),
    "finetune": lambda features, images, model, out: finetune(features, out / "new", head="linear", epochs=1),
    "evaluate": lambda features, images, model, out: evaluate(model, features, out=out / "report"),
    "verify": lambda features, images, model, out: verify(features, images),
}


@pytest.mark.parametrize("command", READERS)
def test_each_command_names_a_damaged_file_and_writes_nothing(grey, copy, head, tmp_path, ray, command):
    for name, place in (("index/part-00000", 60), ("part-00001", 60), ("errors/part-00000", -30)):
        file = copy / f"{name}.parquet"
        before = file.read_bytes()
        flip(file, place)
        message = rf"{name}\.parquet cannot be read: .*; if it is damaged, remove .* and run again"
        failure(lambda: READERS[command](copy, grey / "images", head, tmp_path), message)
        assert not [*tmp_path.glob("new/manifest.json"), *tmp_path.glob("report/*")]
        file.write_bytes(before)


def test_the_remedy_for_a_damaged_file_works(grey, copy, ray):
    flip(copy / "part-00001.parquet", 60)
    flip(copy / "errors/part-00000.parquet", -30)
    for _ in range(2):
        message = failure(lambda: verify(copy, grey / "images"), "cannot be read")
        for name in re.findall(r"(?:errors/)?part-\d+\.parquet", message):
            (copy / name).unlink(missing_ok=True)
        assert extract(grey / "images", copy, GREY).was_complete
    assert verify(copy, grey / "images").rows == 150


@pytest.mark.parametrize("command", ["inspect", "extract"])
def test_footers_are_checked_without_reading_the_rows(grey, copy, ray, command):
    """`tlray inspect` does so, and `tlray extract` on a finished set."""
    flip(copy / "part-00001.parquet", -100)
    features = FeatureSet.open(copy)
    check = features.check if command == "inspect" else lambda: extract(grey / "images", copy, GREY)
    failure(check, r"part-00001\.parquet cannot be read: the checksum of its footer")


def test_a_damaged_model_is_refused(grey, head, ray, tmp_path):
    model = shutil.copytree(head, tmp_path / "model")
    flip(model / "model.keras", os.path.getsize(model / "model.keras") // 2)
    image = next((grey / "images").rglob("*.png"))
    for command in (
        lambda: predict(model, image),
        lambda: evaluate(model, grey / "set"),
        Model.open(model).load,
    ):
        failure(command, r"model/model\.keras cannot be read: .*; if it is damaged, train the model again")


def test_a_model_whose_output_is_not_finite_is_refused(grey, head, ray, tmp_path):
    model = shutil.copytree(head, tmp_path / "model")
    network = Model.open(model).load()
    network.get_layer("head").set_weights(
        [np.nan * array for array in network.get_layer("head").get_weights()]
    )
    network.save(model / "model.keras")
    image = next((grey / "images").rglob("*.png"))
    for command in (
        lambda: predict(model, image),
        lambda: evaluate(model, grey / "set"),
        lambda: predict(model, grey / "images", tmp_path / "p.csv"),
    ):
        failure(command, rf"{model} gives probabilities that are not finite, e\.g\. for (\w/)?\d+\.png")
    assert not (tmp_path / "p.csv").exists()
    assert not (model / "report").exists()


@pytest.mark.parametrize(
    "changes", [{}, {"early_stopping": 1}, pytest.param({"workers": 2}, marks=pytest.mark.distributed)]
)
def test_a_training_that_diverges_leaves_nothing(grey, ray, tmp_path, changes):
    out = tmp_path / "model"
    settings = {"head": "linear", "epochs": 3, "optimizer": "sgd", "validation": 0.2, **changes}
    message = "the loss is not finite after epoch 1"
    failure(lambda: fit(grey / "set", out, learning_rate=1e38, **settings), message, DivergenceError)
    assert os.listdir(tmp_path) in ([], ["model"])
    if "workers" not in changes:
        assert fit(grey / "set", out, learning_rate=1e-3, **settings).warnings == []


def test_a_training_that_cannot_learn_says_so(grey, ray, tmp_path, monkeypatch):
    monkeypatch.setattr(Linear, "loss", staticmethod(lambda true, predicted: 0.0 * predicted[:, 0]))
    result = fit(grey / "set", tmp_path / "model", head="linear", epochs=1)
    assert [warning.partition(",")[0] for warning in result.warnings] == [
        "the loss was 0 from the first epoch on"
    ]
    assert result.to_json()["warnings"] == result.warnings
