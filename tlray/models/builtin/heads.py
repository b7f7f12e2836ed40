"""The heads that come with tlray: those of the published tutorials and a linear classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tlray.models.interfaces import Head

if TYPE_CHECKING:
    import keras


class _Dense(Head):
    """Flatten, one dense layer for each of `units`, then optional batch norm and dropout.

    The output is a softmax over the classes; for two classes and with `sigmoid`, a single sigmoid.
    """

    units: ClassVar[tuple[int, ...]] = ()
    activation: ClassVar[str] = "relu"
    norm: ClassVar[bool] = False
    dropout: ClassVar[float] = 0.0
    sigmoid: ClassVar[bool] = False

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        from keras import Input, Sequential, layers

        stack = [Input(feature_shape), layers.Flatten()]
        stack += [layers.Dense(width, self.activation) for width in self.units]
        stack += [layers.BatchNormalization()] if self.norm else []
        stack += [layers.Dropout(self.dropout)] if self.dropout else []
        outputs, activation = (1, "sigmoid") if self.sigmoid and classes == 2 else (classes, "softmax")
        return Sequential([*stack, layers.Dense(outputs, activation, name="probabilities")])


class Dense256(_Dense):
    """Dense 256 relu, dropout 0.5; one sigmoid for two classes, softmax for more."""

    name = "dense-256"
    units = (256,)
    dropout = 0.5
    sigmoid = True


class Dense256NoDropout(Dense256):
    """Dense 256 relu; one sigmoid for two classes, softmax for more; no dropout."""

    name = "dense-256-no-dropout"
    dropout = 0.0


class Dense512(_Dense):
    """Dense 512 relu, batch norm, dropout 0.5, softmax."""

    name = "dense-512"
    units = (512,)
    norm = True
    dropout = 0.5


class Dense800(_Dense):
    """Dense 800 relu, softmax; no dropout."""

    name = "dense-800"
    optimizer = "adam"
    learning_rate = 1e-3
    units = (800,)


class Dense1024(_Dense):
    """Dense 1024 relu, dropout 0.5, softmax."""

    name = "dense-1024"
    units = (1024,)
    dropout = 0.5


class SimpleNN(_Dense):
    """Dense 1024 sigmoid, dense 512 sigmoid, softmax; no dropout."""

    name = "simple-nn"
    optimizer = "sgd"
    learning_rate = 0.01
    units = (1024, 512)
    activation = "sigmoid"


class Linear(_Dense):
    """Logistic regression: one sigmoid for two classes, softmax for more; no dropout."""

    name = "linear"
    sigmoid = True
