"""SmallVGGNet: VGG-like blocks with fewer filters, for small images and training from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.models.interfaces import Backbone

if TYPE_CHECKING:
    import keras

_FILTERS = ((32,), (64, 64), (128, 128, 128))


class SmallVGGNet(Backbone):
    """Six convolutions with batch norm in three blocks; each block ends with pooling and dropout."""

    name = "small-vggnet"
    image_size = 64
    minimum_size = 8
    cuts = tuple(f"block{block}_dropout" for block in range(1, len(_FILTERS) + 1))

    def build(self, image_size: int) -> keras.Model:
        from keras import Input, Model, layers

        x = pixels = Input((image_size, image_size, 3), name="input")
        for block, convolutions in enumerate(_FILTERS, 1):
            for i, filters in enumerate(convolutions, 1):
                # Batch norm comes after the activation, as in the published network.
                convolution = layers.Conv2D(
                    filters, 3, padding="same", activation="relu", name=f"block{block}_conv{i}"
                )
                x = layers.BatchNormalization(name=f"block{block}_norm{i}")(convolution(x))
            x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
            x = layers.Dropout(0.25, name=f"block{block}_dropout")(x)
        return Model(pixels, x, name=self.name)

    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        import keras

        return keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
