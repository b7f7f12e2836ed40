"""The heads that come with tlray: the published ones and a linear classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.head import Head

if TYPE_CHECKING:
    import keras


def _stack(shape: tuple[int, ...], classes: int, units: int | None, sigmoid: bool) -> keras.Model:
    """Flatten, then one hidden layer with dropout if `units`, then the probabilities."""
    import keras

    hidden = [keras.layers.Dense(units, "relu"), keras.layers.Dropout(0.5)] if units else []
    if sigmoid and classes == 2:
        probabilities = keras.layers.Dense(1, "sigmoid", name="probabilities")
    else:
        probabilities = keras.layers.Dense(classes, "softmax", name="probabilities")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *hidden, probabilities])


class Dense256(Head):
    """Dense 256 relu, dropout 0.5; one sigmoid for two classes, softmax for more."""

    name = "dense-256"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, units=256, sigmoid=True)


class Dense1024(Head):
    """Dense 1024 relu, dropout 0.5, softmax."""

    name = "dense-1024"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, units=1024, sigmoid=False)


class Linear(Head):
    """Logistic regression: one sigmoid for two classes, softmax for more; no dropout."""

    name = "linear"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, units=None, sigmoid=True)
