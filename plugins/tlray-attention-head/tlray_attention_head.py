"""A head that looks where it matters: attention pooling over the positions of a feature map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray import Head

if TYPE_CHECKING:
    import keras


class Attention(Head):
    """Attention pooling (Ilse et al. 2018, arXiv:1802.04712) over positions, dropout 0.5, softmax."""

    name = "attention"
    optimizer = "adam"
    learning_rate = 1e-3

    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        """Weigh the positions, take their mean, and classify that.

        Args:
            feature_shape: (height, width, channels), or (positions, channels).
            classes: how many there are.

        Raises:
            ValueError: the features have no positions.
        """
        if len(feature_shape) < 2:
            raise ValueError(
                "attention needs positions, as in (height, width, channels): "
                "extract at a --cut before the pooling"
            )
        import keras

        layers = keras.layers
        features = keras.Input(feature_shape)
        positions = layers.Reshape((-1, feature_shape[-1]), name="positions")(features)
        # Backbones differ in scale by a factor of a hundred; attention would be all or nothing.
        positions = layers.LayerNormalization(name="scale")(positions)
        # The gated form: what a position holds, times whether that counts.
        holds = layers.Dense(128, "tanh", name="holds")(positions)
        counts = layers.Dense(128, "sigmoid", name="counts")(positions)
        scores = layers.Dense(1, name="scores")(layers.Multiply(name="gate")([holds, counts]))
        weights = layers.Softmax(axis=1, name="weights")(scores)
        pooled = layers.Flatten(name="pooled")(layers.Dot(axes=1, name="mean")([weights, positions]))
        kept = layers.Dropout(0.5, name="dropout")(pooled)
        return keras.Model(features, layers.Dense(classes, "softmax", name="probabilities")(kept))
