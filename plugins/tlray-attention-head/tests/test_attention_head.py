"""The head finds what counts among the positions, and its model needs nothing of this package."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tlray import UserError
from tlray.core.runtime import prepare_keras
from tlray.models import registry
from tlray.models.assemble import build_head


@pytest.fixture(scope="module")
def keras():
    prepare_keras()
    import keras

    return keras


@pytest.fixture
def head():
    return registry.head("attention")


def bags(digits: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine handwritten digits in a square, (count, 3, 3, 64); half of them have one 9 among them, class 1."""
    rng = np.random.default_rng(seed)
    nines, others = np.flatnonzero(labels == 9), np.flatnonzero(labels != 9)
    chosen = rng.choice(others, (count, 9))
    classes = np.arange(count) % 2
    with_nine = np.flatnonzero(classes)
    chosen[with_nine, rng.integers(0, 9, len(with_nine))] = rng.choice(nines, len(with_nine))
    return digits[chosen].reshape(count, 3, 3, 64), classes


@pytest.mark.slow
def test_it_finds_the_digit_that_counts(keras, head):
    """The experiment of the paper, with real digits: means over all nine hardly see the one."""
    digits, labels = load_digits(return_X_y=True)
    digits = digits.astype(np.float32)
    rows, classes = bags(digits[:1200], labels[:1200], 1500, 0)
    tests, expected = bags(digits[1200:], labels[1200:], 400, 1)

    def accuracy(model) -> float:
        model.compile(
            keras.optimizers.get(
                {"class_name": head.optimizer, "config": {"learning_rate": head.learning_rate}}
            ),
            "sparse_categorical_crossentropy",
        )
        model.fit(rows, classes, epochs=30, verbose=0)
        return float((model.predict(tests, verbose=0).argmax(1) == expected).mean())

    keras.utils.set_random_seed(0)
    layers = keras.layers
    means = [layers.LayerNormalization(), layers.GlobalAveragePooling2D(), layers.Dense(2, "softmax")]
    baseline = accuracy(keras.Sequential([keras.Input((3, 3, 64)), *means]))
    found = accuracy(head.build((3, 3, 64), 2))
    assert found > 0.9
    assert found > baseline + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("shape", [(4, 4, 8), (16, 8)])
def test_it_is_a_mean_with_weights(keras, head, shape, classes):
    model = head.build(shape, classes)
    rows = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    assert build_head(head, shape, classes).output_shape == model.output_shape == (None, classes)
    inner = [model.get_layer(name).output for name in ("scale", "weights", "pooled")]
    scaled, weights, pooled = (np.array(x) for x in keras.Model(model.inputs, inner)(rows))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(pooled, (weights * scaled).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(model(rows).numpy().sum(axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_it_loads_in_safe_mode_without_this_package(keras, head, tmp_path):
    model = head.build((4, 4, 8), 3)
    rows = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    model.save(tmp_path / "head.keras")
    with zipfile.ZipFile(tmp_path / "head.keras") as file:
        assert b"tlray" not in file.read("config.json")
    loaded = keras.saving.load_model(tmp_path / "head.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(rows), model(rows))


@pytest.mark.slow
def test_features_without_positions_are_refused(keras, head):
    with pytest.raises(UserError, match=r"'attention' does not fit features of shape \(1280,\).*--cut"):
        build_head(head, (1280,), 2)


def test_importing_it_does_not_import_keras():
    code = "import sys, tlray_attention_head; print(*{'keras', 'tensorflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
