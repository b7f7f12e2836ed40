"""Training a head: N workers give what one gives, and a training that was killed goes on where it was."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.jobs.conftest import GREY
from tests.support.outputs import assert_same_head
from tests.support.processes import of_session, tlray
from tlray.core.config import FitConfig
from tlray.core.errors import UserError
from tlray.features.extract import extract
from tlray.models.interfaces import Head
from tlray.training.fit import fit


class Normalised(Head):
    """A head whose layers see the statistics of a batch."""

    name = "normalised"

    def build(self, feature_shape, classes):
        import keras

        layers = keras.layers
        hidden = [layers.Flatten(), layers.Dense(16), layers.BatchNormalization(), layers.Activation("relu")]
        return keras.Sequential([keras.Input(feature_shape), *hidden, layers.Dense(classes, "softmax")])


@pytest.mark.distributed
def test_one_and_three_workers_give_the_same_weights(features, ray, tmp_path, monkeypatch):
    """The moments of a batch, their gradients and the moving averages too, in a padded last batch as well."""
    monkeypatch.setattr("tlray.models.registry.head", lambda name: Normalised())
    config = FitConfig(head="normalised", epochs=2, batch_size=32, optimizer="sgd", learning_rate=1e-3)
    one, three = (fit(features, tmp_path / str(count), config, workers=count) for count in (1, 3))
    assert_same_head(tmp_path / "3", tmp_path / "1", atol=1e-5, rtol=1e-4)
    assert three.history == [pytest.approx(epoch, rel=1e-4) for epoch in one.history]


def test_early_stopping_keeps_the_best_epoch_and_tensorboard_is_written(features, ray, tmp_path):
    config = FitConfig(head="linear", epochs=40, learning_rate=0.05, early_stopping=2, tensorboard=True)
    result = fit(features, tmp_path / "model", config)
    losses = [epoch["val_loss"] for epoch in result.history]
    assert result.epochs == len(losses) < 40
    assert result.kept_epoch == 1 + int(np.argmin(losses)) == len(losses) - 2
    assert result.metrics["val_loss"] == min(losses)
    # The folder is named by date and time; the file has the histograms of the weights.
    (events,) = (tmp_path / "model" / "tensorboard").glob("20*-*/train/events.out.tfevents*")
    assert b"histogram" in events.read_bytes()


def test_validation_rows_are_held_out_after_a_split(digits, ray, tmp_path):
    """The two must not draw from the same hash: the training rows have its lower values."""
    features, model = tmp_path / "set", tmp_path / "model"
    extract(digits / "train", features, GREY, split=0.75)
    (model / ".training" / "training").mkdir(parents=True)  # of a run that was killed
    result = fit(features, model, head="linear", epochs=1, validation=0.2)
    total = result.rows + result.validation_rows
    assert total == json.loads((features / "manifest.json").read_text())["splits"]["train"]
    assert 0.1 < result.validation_rows / total < 0.3
    assert sorted(os.listdir(model)) == ["history.csv", "manifest.json", "model.keras"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.keras").write_bytes(b"of the user's own")
    with pytest.raises(UserError, match="is no model of tlray"):
        fit(features, tmp_path / "own", head="linear", epochs=1)
    assert (tmp_path / "own" / "model.keras").read_bytes() == b"of the user's own"


def test_the_model_folder_is_complete_and_repeats_its_result(features, model):
    names = {path.name for path in model.iterdir()}
    assert {"model.keras", "manifest.json", "history.csv"} <= names <= {*names, "report"}
    header, *lines = (model / "history.csv").read_text().splitlines()
    assert header == "epoch,loss,accuracy,val_loss,val_accuracy"
    assert [line.partition(",")[0] for line in lines] == [str(epoch) for epoch in range(1, 9)]
    again = fit(features, model, epochs=8)
    assert again.was_complete
    assert len(again.history) == 8
    with pytest.raises(UserError, match=r"a model of another job \(epochs 8, not 9\)"):
        fit(features, model, epochs=9)


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


@pytest.mark.distributed
def test_one_worker_without_ray_gives_the_same_and_goes_on_after_a_kill(features, model, tmp_path):
    killed = subprocess.run([sys.executable, "-c", ALONE, features, tmp_path / "model"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model" / "manifest.json").exists()
    words = ("fit", features, "--out", tmp_path / "model", "--epochs", 8, "--json")
    again = tlray(*words, start_new_session=True)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    # It did not begin anew, and no Ray was started.
    assert [line.split()[1] for line in errors.splitlines()] == ["5/8", "6/8", "7/8", "8/8"]
    assert of_session(again.pid) == []
    assert json.loads(output)["time"]["training"] > 0
    assert sorted(os.listdir(tmp_path / "model")) == ["history.csv", "manifest.json", "model.keras"]
    assert_same_head(tmp_path / "model", model, atol=1e-6)
