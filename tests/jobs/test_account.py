"""What jobs say of their images before the work, and refuse."""

import json
import time
from pathlib import Path

import pytest

from tests.jobs.conftest import GREY
from tlray.core.config import FinetuneConfig
from tlray.core.errors import UserError
from tlray.core.results import Account
from tlray.features import inference
from tlray.features.extract import extract
from tlray.images import index_writer
from tlray.images.index_writer import IndexWriter
from tlray.models.model import Model
from tlray.training.finetune import finetune
from tlray.training.fit import fit

TUNED = FinetuneConfig(backbone="grey-pixels", image_size=8, from_="input", head="linear", epochs=1)


@pytest.fixture
def arranged(pictures, tmp_path):
    """Writes pictures under new names; "2 train/a" stands for two of the class a in this folder."""

    def write(*wanted: str) -> Path:
        for number, folder in (words.split() for words in wanted):
            (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
            files = [name for name in pictures if name.startswith(folder[-1])] or list(pictures)
            for name in files[: int(number)]:
                (tmp_path / "images" / folder / Path(name).name).write_bytes(pictures[name])
        return tmp_path / "images"

    return write


def test_a_validation_split_without_labels(arranged, ray, tmp_path):
    images, announced = arranged("4 train/a", "4 train/b", "3 val"), []
    result = extract(images, tmp_path / "set", GREY, announce=announced.append)
    assert announced == [result.account] * 2
    assert result.account.classes == {"a": 4, "b": 4}
    assert result.account.splits == {"train": 8, "validation": 3}
    (line,) = result.account.warnings
    assert line.startswith("the 3 validation images have no labels: put them into validation/CLASS/, or")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["account"] == result.account.to_json() == result.to_json()["account"]
    for start in (
        lambda: fit(tmp_path / "set", tmp_path / "model", head="linear", epochs=1),
        lambda: fit(tmp_path / "set", tmp_path / "model", head="linear", epochs=1, early_stopping=2),
        lambda: finetune(images, tmp_path / "model", TUNED, announce=announced.append),
    ):
        with pytest.raises(
            UserError, match=r"^the 3 validation images have no labels: .* --validation 0\.2$"
        ):
            start()
    fitted = fit(tmp_path / "set", tmp_path / "model", head="linear", epochs=1, validation=0.4)
    assert fitted.rows + fitted.validation_rows == 8
    assert Model.open(tmp_path / "model").classes == ["a", "b"]
    assert Model.open(tmp_path / "model").manifest.account == result.account
    again = extract(images, tmp_path / "set", GREY, announce=announced.append)
    assert again.was_complete
    assert announced[-1] == again.account == result.account


def test_classes_without_training_images(arranged, ray, tmp_path):
    images = arranged("4 train/a", "4 train/b", "2 validation/c")
    message = "the class 'c' has 2 validation images and no training images: add training images, or"
    for start in (
        lambda: extract(images, tmp_path / "set", GREY),
        lambda: finetune(images, tmp_path / "model", TUNED),
    ):
        with pytest.raises(UserError, match=message):
            start()
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "model").exists()
    (images / "validation").rename(images / "test")
    with pytest.warns(UserWarning, match="the class 'c' has 2 test images and no training images"):
        result = extract(images, tmp_path / "set", GREY)
    assert result.classes == ["a", "b", "c"]
    fit(tmp_path / "set", tmp_path / "model", head="linear", epochs=1)
    assert Model.open(tmp_path / "model").classes == ["a", "b"]
    with pytest.raises(UserError, match="the class 'c' has 2 test images and no training images"):
        fit(tmp_path / "set", tmp_path / "other", head="linear", epochs=1, validation="test")
    assert not (tmp_path / "other").exists()


def test_the_first_account_does_not_wait_for_the_listing(grey, ray, tmp_path, monkeypatch):
    finish = IndexWriter.finish

    def slow(writer: IndexWriter) -> None:
        time.sleep(1.5)
        finish(writer)

    monkeypatch.setattr(IndexWriter, "finish", slow)
    monkeypatch.setattr(inference, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(index_writer, "_FIRST", 1)
    announced: list[Account] = []
    result = extract(grey / "images", tmp_path / "set", GREY, batch_size=1, announce=announced.append)
    assert [(account.images, account.complete) for account in announced] == [(64, False), (150, True)]
    assert announced[1] == result.account
    assert result.account.classes == {"a": 50, "b": 50, "c": 50}
