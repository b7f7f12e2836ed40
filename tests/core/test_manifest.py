"""Manifests of earlier versions, and damaged ones."""

import json

import pytest

from tests.support.feature_sets import write_set
from tests.support.manifests import model_json
from tlray.core.errors import UserError
from tlray.core.manifest import MANIFEST, other_job
from tlray.core.storage import Folder
from tlray.features.feature_set import FeatureSet
from tlray.models.model import Model

STAGE = {
    **{"from": None, "head": "linear", "augment": None, "monitor": "val_loss", "epochs": 1, "kept_epoch": 1},
    **{"stopped_epoch": None, "metrics": {"loss": 0.5}, "history": [{"epoch": 1, "loss": 0.5}]},
}


def write(folder: Folder, values: object) -> None:
    folder.write(MANIFEST, json.dumps(values).encode())


@pytest.mark.parametrize("missing", ["split", "format", "job", "provenance", "stages", "classes", "images"])
def test_an_entry_of_a_model_is_missing(folder, missing):
    write(folder, model_json(stages=[STAGE]))
    assert Model.open(folder.uri).manifest.split is None
    write(folder, {name: value for name, value in model_json().items() if name != missing})
    with pytest.raises(UserError, match=rf"manifest\.json is damaged: {missing} is missing"):
        Model.open(folder.uri)


@pytest.mark.parametrize("missing", STAGE)
def test_an_entry_of_a_stage_is_missing(folder, missing):
    stage = {name: value for name, value in STAGE.items() if name != missing}
    write(folder, model_json(stages=[STAGE, stage]))
    with pytest.raises(UserError, match=rf"damaged: stages\.{missing} is missing"):
        Model.open(folder.uri)


def test_the_settings_of_a_training_are_missing(folder):
    write(folder, model_json(job={}))
    with pytest.raises(UserError, match=r"damaged: job\.training is missing"):
        Model.open(folder.uri)


def test_a_set_of_format_1_is_read(folder):
    """The first version wrote no checksums, and had fewer entries in its manifest."""
    write_set(folder, earlier=True)
    data = FeatureSet.open(folder.uri)
    assert data.manifest.format == "tlray-features/1"
    assert sum(len(rows.paths) for rows in data.batches()) == 120
    assert sum(data.counts().values()) == 121


@pytest.mark.parametrize(
    "name", ["tlray-features/3", "tlray-features/0", "tlray-features", "tlray-features/x"]
)
def test_other_formats_are_refused(folder, name):
    write_set(folder, format=name)
    with pytest.raises(UserError, match=f"has the format {name}; expected tlray-features/2"):
        FeatureSet.open(folder.uri)


def test_an_unfinished_job_of_format_1_is_not_continued(folder):
    error = other_job(folder, "another job", {"format": "tlray-features/1"}, {"format": "tlray-features/2"})
    assert "format tlray-features/1, not tlray-features/2" in str(error)
    assert "remove this one and run the same command again" in str(error)
