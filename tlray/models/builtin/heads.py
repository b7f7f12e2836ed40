"""The heads that come with tlray: those of the published tutorials and a linear classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.models.interfaces import Head

if TYPE_CHECKING:
    import keras


def _stack(
    shape: tuple[int, ...],
    classes: int,
    *units: int,
    activation: str = "relu",
    norm: bool = False,
    dropout: float = 0.0,
    sigmoid: bool = False,
) -> keras.Model:
    """Build a head: Flatten, one dense layer for each of `units`, then optional batch norm and dropout.

    The output is a softmax over the classes; for two classes and with `sigmoid`, a single sigmoid.
    """
    import keras

    layers = keras.layers
    stack = [keras.Input(shape), layers.Flatten(), *(layers.Dense(width, activation) for width in units)]
    if norm:
        stack.append(layers.BatchNormalization())
    if dropout:
        stack.append(layers.Dropout(dropout))
    outputs, output_activation = (1, "sigmoid") if sigmoid and classes == 2 else (classes, "softmax")
    return keras.Sequential([*stack, layers.Dense(outputs, output_activation, name="probabilities")])


class Dense256(Head):
    """Dense 256 relu, dropout 0.5; one sigmoid for two classes, softmax for more."""

    name = "dense-256"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 256, dropout=0.5, sigmoid=True)


class Dense256NoDropout(Head):
    """Dense 256 relu; one sigmoid for two classes, softmax for more; no dropout."""

    name = "dense-256-no-dropout"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 256, sigmoid=True)


class Dense512(Head):
    """Dense 512 relu, batch norm, dropout 0.5, softmax."""

    name = "dense-512"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 512, norm=True, dropout=0.5)


class Dense800(Head):
    """Dense 800 relu, softmax; no dropout."""

    name = "dense-800"
    optimizer = "adam"
    learning_rate = 1e-3

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 800)


class Dense1024(Head):
    """Dense 1024 relu, dropout 0.5, softmax."""

    name = "dense-1024"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 1024, dropout=0.5)


class SimpleNN(Head):
    """Dense 1024 sigmoid, dense 512 sigmoid, softmax; no dropout."""

    name = "simple-nn"
    optimizer = "sgd"
    learning_rate = 0.01

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, 1024, 512, activation="sigmoid")


class Linear(Head):
    """Logistic regression: one sigmoid for two classes, softmax for more; no dropout."""

    name = "linear"

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        return _stack(feature_shape, classes, sigmoid=True)
