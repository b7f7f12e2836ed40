"""The networks are those of Keras, take what Keras' take, and can be cut where they say."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tlray_keras_applications
from tlray_keras_applications import NETWORKS

from tlray import UserError
from tlray.core.runtime import prepare_keras
from tlray.models import weights
from tlray.models.frozen import FrozenPart
from tlray.models.provenance import Provenance
from tlray.models.registry import backbone

RNG = np.random.default_rng(0)
PROVENANCE = Provenance(
    backbone="",
    package="",
    weights="none",
    weights_sha256="",
    cut="",
    preprocess="imagenet",
    image_size=0,
    precision="float32",
    store="float32",
)
UNCHECKED = {"mobilenet", "mobilenet-v2"}
"""Keras says no hash of their files."""


@pytest.fixture(scope="module", autouse=True)
def keras():
    prepare_keras()
    import keras

    return keras


class Both:
    """One network, as the plugin builds it and as Keras does, at its smallest size."""

    def __init__(self, name: str) -> None:
        import keras
        from keras.src.utils import file_utils

        self.name = name
        self.plugin = backbone(name)
        self.ours = self.plugin.build(self.plugin.minimum_size)
        self.asked: list[tuple[str, str, str | None]] = []

        def get_file(fname: str, origin: str, file_hash: str | None = None, **_: Any) -> str:
            self.asked.append((fname, origin, file_hash))
            return fname

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_utils, "get_file", get_file)
            patch.setattr(keras.Model, "load_weights", lambda self, path: None)
            function = getattr(keras.applications, NETWORKS[name].function)
            self.keras = function(
                include_top=False, input_shape=self.ours.input_shape[1:], pooling=NETWORKS[name].pooling
            )
        self.preprocess_input = sys.modules[function.__module__].preprocess_input


@pytest.fixture(scope="module", params=NETWORKS)
def both(request) -> Both:
    return Both(request.param)


def weighted(model) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(layer.name, [w.shape for w in layer.weights]) for layer in model.layers if layer.weights]


def test_the_entry_points_are_the_table():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["tlray.backbones"]
    assert points == {n: f"tlray_keras_applications:{row.function}" for n, row in NETWORKS.items()}


def test_nothing_heavy_is_imported():
    code = "import sys, tlray_keras_applications; print(*{'keras', 'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"numpy"}


@pytest.mark.slow
def test_the_weights_are_those_that_keras_would_load(both):
    ((file, url, file_hash),) = both.asked
    known = both.plugin.weights["imagenet"]
    assert url == known.url
    assert file == known.url.rpartition("/")[2]
    if both.name in UNCHECKED:
        assert file_hash is None
        assert len(known.file_hash) == 32
    else:
        assert file_hash == known.file_hash


@pytest.mark.slow
def test_the_layers_are_those_of_keras_with_the_names_of_a_first_build(both):
    tlray_keras_applications._name_as_the_first(both.keras)
    assert weighted(both.ours) == weighted(both.keras)
    ours, theirs = ([operation.name for operation in m.operations] for m in (both.ours, both.keras))
    assert ours == [name for name in theirs if name in set(ours)]
    assert ours[0] == "input_layer"


@pytest.mark.slow
def test_the_preprocessing_is_that_of_keras(keras, both):
    def up_to_the_weights(model):
        first = next(layer for layer in model.layers if layer.weights)
        return keras.Model(model.inputs, first.input)

    size = both.plugin.minimum_size
    images = RNG.integers(0, 256, (2, size, size, 3)).astype(np.float32)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    pixels = keras.Input((size, size, 3))
    ours = keras.Model(pixels, up_to_the_weights(both.ours)(both.plugin.preprocess(pixels)))
    expected = up_to_the_weights(both.keras)(both.preprocess_input(images.copy()))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours(images), expected, atol=2e-5)


@pytest.mark.slow
def test_the_network_splits_at_every_cut(both, monkeypatch):
    monkeypatch.setattr(FrozenPart, "network", lambda self: both.ours)
    cuts = both.plugin.cuts
    places = [layer.name for layer in both.ours.layers]
    assert sorted(cuts, key=places.index) == list(cuts)
    assert both.ours.get_layer(cuts[-1]).output is both.ours.output
    for cut in cuts[:-1]:
        tail = FrozenPart(both.plugin, [], replace(PROVENANCE, cut=cut)).build_tail(cuts[-1])
        assert tail.input_shape == both.ours.get_layer(cut).output.shape
        assert 0 not in tail.input_shape


@pytest.mark.slow
def test_a_smaller_image_is_refused(both):
    with pytest.raises(ValueError, match="at least"):
        both.plugin.build(both.plugin.minimum_size - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "both",
    ["convnext-tiny", "efficientnet-v2-b0", "inception-v3", "mobilenet", "xception"],
    indirect=True,
)
def test_a_file_of_keras_2_is_read_in_its_order(both, tmp_path, monkeypatch):
    """One of each kind of layers, written as Keras 2 did from what Keras builds, preprocessing included."""
    from keras.src.legacy.saving import legacy_h5_format

    for variable in both.keras.weights:
        variable.assign(RNG.uniform(0.5, 1, variable.shape))
    known = both.plugin.weights["imagenet"]
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    file = weights.keras_cache(known.url)
    file.parent.mkdir()
    with h5py.File(file, "w") as h5:
        legacy_h5_format.save_weights_to_hdf5_group(h5, both.keras)
    with pytest.raises(UserError, match=r"does not hold the 'imagenet' weights.*expected"):
        weights.resolve(both.plugin, "imagenet", [])
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(both.plugin.weights, "imagenet", replace(known, file_hash=digest))
    found = weights.resolve(both.plugin, "imagenet", [])
    assert found.sha256 == weights.digest(both.keras.get_weights())
    for array, expected in zip(found.arrays, both.keras.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)
