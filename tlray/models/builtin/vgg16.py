"""VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556) without its classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tlray.models.interfaces import Backbone, KnownWeights

if TYPE_CHECKING:
    import keras

_BLOCKS = (2, 2, 3, 3, 3)


class VGG16(Backbone):
    """13 convolutions in five blocks; each block ends with a pooling layer that halves the side."""

    name = "vgg16"
    image_size = 150
    minimum_size = 32
    cuts = tuple(
        f"block{block}_{layer}"
        for block, convolutions in enumerate(_BLOCKS, 1)
        for layer in [*(f"conv{i}" for i in range(1, convolutions + 1)), "pool"]
    )
    weights: ClassVar = {
        "imagenet": KnownWeights(
            sha256="d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd",
            url="https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        )
    }

    def build(self, image_size: int) -> keras.Model:
        import keras

        return keras.applications.VGG16(
            include_top=False, weights=None, input_shape=(image_size, image_size, 3), name=self.name
        )

    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        # The authors' Caffe release takes BGR pixels minus the mean pixel of ImageNet.
        import keras

        bgr = keras.ops.flip(pixels, axis=-1)
        return keras.layers.Rescaling(1.0, offset=[-103.939, -116.779, -123.68], name="subtract_mean")(bgr)
