"""Backbones without a network: the features are the pixels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tlray.models.interfaces import Backbone

if TYPE_CHECKING:
    import keras


class Pixels(Backbone):
    """The pixels as features: row by row, red, green and blue of each pixel, times 1/255."""

    name = "pixels"
    image_size = 32
    cuts = ("pixels",)

    def build(self, image_size: int) -> keras.Model:
        import keras

        pixels = keras.Input((image_size, image_size, 3), name="input")
        return keras.Model(pixels, keras.layers.Flatten(name="pixels")(pixels), name=self.name)

    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        import keras

        return keras.layers.Rescaling(1 / 255, name="rescale")(pixels)


class GreyPixels(Pixels):
    """The grey values of the pixels as features, row by row, times 1/255."""

    name = "grey-pixels"
    image_size = 28
    cuts = ("grey_pixels",)

    def build(self, image_size: int) -> keras.Model:
        import keras

        pixels = keras.Input((image_size, image_size, 3), name="input")
        # Pillow's convert("L") uses these weights (ITU-R 601). They sum to 1, so a grey image is unchanged.
        luma = np.array([0.299, 0.587, 0.114], np.float32)
        grey = keras.ops.sum(keras.ops.multiply(pixels, luma), axis=-1)
        return keras.Model(pixels, keras.layers.Flatten(name="grey_pixels")(grey), name=self.name)
