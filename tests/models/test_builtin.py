"""The backbones and heads that come with tlray are what was published."""

from importlib.metadata import entry_points
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError
from tlray.images.decoder import decode
from tlray.models import registry
from tlray.models.compiled import compile_network
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Backbone
from tlray.models.layers import cut_before

RNG = np.random.default_rng(0)

FEATURES = {
    "vgg16": (150, (4, 4, 512)),
    "small-vggnet": (64, (8, 8, 128)),
    "pixels": (32, (3072,)),
    "grey-pixels": (28, (784,)),
}
"""Size of the images, and shape of the features."""

DROP = ("Dropout", 0.5)
NORM = ("BatchNormalization",)
HEADS = {
    "dense-256": ([("Dense", 256, "relu"), DROP], True),
    "dense-256-no-dropout": ([("Dense", 256, "relu")], True),
    "dense-512": ([("Dense", 512, "relu"), NORM, DROP], False),
    "dense-800": ([("Dense", 800, "relu")], False),
    "dense-1024": ([("Dense", 1024, "relu"), DROP], False),
    "linear": ([], True),
    "simple-nn": ([("Dense", 1024, "sigmoid"), ("Dense", 512, "sigmoid")], False),
}
"""The hidden layers of each head, and whether it has one sigmoid for two classes."""

OPTIMIZERS = {"dense-800": ("adam", 1e-3), "simple-nn": ("sgd", 0.01)}
"""Of the heads that do not have the one of `tlray.models.interfaces.Head`."""


every_head = pytest.mark.parametrize("name", HEADS)


def frozen(name: str, **options) -> FrozenPart:
    return FrozenPart.decide(NetworkConfig(backbone=name, weights="none", precision="float32", **options))


def features(name: str, images: np.ndarray) -> np.ndarray:
    size = images.shape[1]
    return compile_network(frozen(name, image_size=size).build(), size, "float32")(images)


def noise(rows: int, size: int) -> np.ndarray:
    return RNG.integers(0, 256, (rows, size, size, 3), np.uint8)


# Backbones


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_the_published_sizes(keras, name):
    backbone = registry.backbone(name)
    assert (backbone.image_size, backbone.build(backbone.image_size).output_shape[1:]) == FEATURES[name]


@pytest.mark.slow
def test_small_vggnet_is_the_published_network(keras):
    """Written down once more, in the words of the publication."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    published = keras.Sequential([keras.Input((64, 64, 3))])
    for filters, times in ((32, 1), (64, 2), (128, 3)):
        for _ in range(times):
            published.add(layers.Conv2D(filters, (3, 3), padding="same"))
            published.add(layers.Activation("relu"))
            published.add(layers.BatchNormalization(axis=-1))
        published.add(layers.MaxPooling2D(pool_size=(2, 2)))
        published.add(layers.Dropout(0.25))
    hidden = [layers.Dense(512), layers.Activation("relu"), layers.BatchNormalization(), layers.Dropout(0.5)]
    for layer in (layers.Flatten(), *hidden, layers.Dense(3), layers.Activation("softmax")):
        published.add(layer)

    backbone = registry.backbone("small-vggnet").build(64)
    head = registry.head("dense-512").build(backbone.output_shape[1:], 3)
    ours = keras.Sequential([backbone, head])

    convolutions = 896 + 18_496 + 36_928 + 73_856 + 2 * 147_584
    norms = 4 * (32 + 2 * 64 + 3 * 128)
    assert backbone.count_params() == convolutions + norms == 427_520
    assert head.count_params() == (8192 * 512 + 512) + 4 * 512 + (512 * 3 + 3) == 4_198_403
    # Fresh biases and batch norms would do nothing.
    arrays = [RNG.uniform(0.5, 1, a.shape) if a.ndim == 1 else a for a in published.get_weights()]
    for model in (published, ours):
        model.set_weights(arrays)
    # Random layers give nearly the same features for all images that are not very different.
    images = RNG.random((4, 64, 64, 3), np.float32) * np.float32([0, 0.1, 1, 3])[:, None, None, None]
    expected = published.predict(images, verbose=0)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(ours.predict(images, verbose=0), expected, atol=1e-6)
    rates = [[x.rate for x in part._flatten_layers() if hasattr(x, "rate")] for part in (ours, published)]
    assert rates[0] == rates[1] == [0.25, 0.25, 0.25, 0.5]


@pytest.mark.slow
def test_small_vggnet_takes_pixels_times_1_255(keras):
    images = noise(2, 64)
    network = registry.backbone("small-vggnet").build(64)
    network.set_weights(frozen("small-vggnet").arrays)
    expected = network(images / np.float32(255), training=False).numpy()
    np.testing.assert_allclose(features("small-vggnet", images), expected, atol=1e-6)


@pytest.mark.slow
def test_pixels_are_the_resized_image(keras):
    picture = Image.fromarray(RNG.integers(0, 256, (41, 67, 3), np.uint8))
    file = BytesIO()
    picture.save(file, "PNG")
    small = picture.resize((32, 32), Image.Resampling.BILINEAR)
    expected = [value / 255 for y in range(32) for x in range(32) for value in small.getpixel((x, y))]
    (pixels,) = features("pixels", decode(file.getvalue(), 32)[None])
    np.testing.assert_allclose(pixels, expected, atol=1e-7)


@pytest.mark.slow
def test_grey_pixels_are_those_of_a_grey_picture_and_of_pillow(keras):
    grey = np.resize(np.arange(256, dtype=np.uint8), (1, 28, 28))
    pixels = features("grey-pixels", np.stack([grey] * 3, axis=-1))
    np.testing.assert_allclose(pixels, grey.reshape(1, 784) / 255, atol=2e-7)
    (colours,) = noise(1, 28)
    expected = np.array(Image.fromarray(colours).convert("L"), np.float32).ravel()
    (pixels,) = features("grey-pixels", colours[None])
    np.testing.assert_allclose(pixels * 255, expected, atol=0.501)  # Pillow rounds to whole numbers.


# Heads


def test_every_built_in_head_is_checked():
    points = entry_points(group="tlray.heads")
    assert {point.name for point in points if point.dist.name == "tlray"} == set(HEADS)


@every_head
def test_the_defaults_of_a_head(name):
    head = registry.head(name)
    assert (head.optimizer, head.learning_rate) == OPTIMIZERS.get(name, ("rmsprop", 1e-4))
    assert head.loss == ""


def described(layer) -> tuple:
    dense = (layer.units, layer.activation.__name__) if hasattr(layer, "units") else ()
    return (type(layer).__name__, *dense, *([layer.rate] if hasattr(layer, "rate") else []))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(2, 2, 4), (16,)])
@every_head
def test_a_head_is_the_published_one(keras, name, shape, classes):
    hidden, one_output = HEADS[name]
    output = ("Dense", 1, "sigmoid") if one_output and classes == 2 else ("Dense", classes, "softmax")
    model = registry.head(name).build(shape, classes)
    assert [described(layer) for layer in model.layers] == [("Flatten",), *hidden, output]
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, output[1])


class Branched(Backbone):
    """A stem, two paths that are joined, and an operation that is no layer."""

    name = "branched"
    image_size = 8
    cuts = ("stem",)

    def build(self, image_size: int):
        import keras

        layers = keras.layers
        pixels = keras.Input((image_size, image_size, 3), name="pixels")
        stem = layers.Conv2D(3, 3, padding="same", name="stem")(pixels)
        joined = layers.Add(name="join")([stem, layers.ReLU(name="relu")(stem)])
        flipped = keras.ops.flip(layers.ReLU(name="after_join")(joined), axis=-1)
        return keras.Model(pixels, layers.Flatten(name="after_flip")(flipped))

    def preprocess(self, pixels):
        return pixels


class Stack(Branched):
    """A `keras.Sequential`, which does not list the layer of its input."""

    def build(self, image_size: int):
        import keras

        layers = keras.layers
        first, second = layers.ReLU(name="first"), layers.ReLU(name="second")
        return keras.Sequential([keras.Input((image_size, image_size, 3)), first, second])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "layer", "cut"),
    [
        (Branched(), "input", "input"),
        (Branched(), "pixels", "input"),
        (Branched(), "stem", "input"),
        (Branched(), "relu", "stem"),
        (Branched(), "after_join", "join"),
        (Stack(), "first", "input"),
        (Stack(), "second", "first"),
    ],
)
def test_training_from_a_layer_cuts_after_the_one_before_it(backbone, layer, cut):
    assert cut_before(backbone, layer) == cut


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("join", "branched cannot be split before join, because it joins 2 paths"),
        ("after_flip", "branched cannot be split before after_flip, because its input comes from no layer"),
        ("steam", "unknown layer of branched 'steam': did you mean stem?"),
    ],
)
def test_training_from_a_layer_that_follows_on_no_single_one_is_refused(layer, message):
    with pytest.raises(UserError, match=message):
        cut_before(Branched(), layer)
