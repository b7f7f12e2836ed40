"""Builds the trained part of a network and joins it with the frozen part into one Keras model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlray.core.errors import UserError
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.models.layers import foreign_layers

if TYPE_CHECKING:
    import keras


def trained_part(frozen: FrozenPart, end: str, head: Head, classes: int) -> keras.Model:
    """Build the model "trained", from features at the cut, float32 (batch, *shape), to the head's output.

    It consists of "tail", the backbone from the cut to `end`, if any, and "classifier".

    Raises:
        UserError: the network cannot be cut there, or the head does not fit the features or the classes.
    """
    import keras

    tail = frozen.build_tail(end)
    shape = tail.input_shape if tail is not None else frozen.build().output_shape
    features = keras.Input(shape[1:], name="features")
    output = tail(features) if tail is not None else features
    classifier = build_head(head, output.shape[1:], classes)
    return keras.Model(features, classifier(output), name="trained")


def build_head(head: Head, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build a head as the model "classifier", and check the model that the plugin returns.

    Raises:
        UserError: the head does not fit the features or the classes, or uses other layers than Keras' own.
    """
    import keras

    try:
        model = head.build(feature_shape, classes)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"head {head.name!r} does not fit features of shape {feature_shape}: {reason}"
        ) from error
    if foreign := foreign_layers(model):
        raise UserError(
            f"head {head.name!r} uses its own layer class {foreign[0]}, so its model would not load without "
            "the plugin: use Keras' layers and keras.ops"
        )
    width = model.output_shape[-1]
    if len(model.output_shape) != 2 or width not in ({1, 2} if classes == 2 else {classes}):
        raise UserError(
            f"head {head.name!r} does not fit {classes} classes: its output has shape {model.output_shape}, "
            f"expected (batch, {classes})"
        )
    return keras.Model(model.inputs, model.outputs[0], name="classifier")


def assemble(frozen: FrozenPart, trained: keras.Model) -> keras.Model:
    """Join the layers "resize", "frozen" and "head" into the whole network, which needs no code but Keras.

    It turns "image", uint8 RGB (batch, height, width, 3) of any size, into probabilities
    (batch, classes). The layer "head" turns features into the same probabilities: it holds "tail",
    if a part of the backbone was trained, and "classifier".
    """
    import keras

    features = keras.Input(trained.input_shape[1:], name="features")
    probabilities = features
    for layer in trained.layers[1:]:
        probabilities = layer(probabilities)
    if probabilities.shape[-1] == 1:
        probabilities = keras.ops.concatenate([1 - probabilities, probabilities], axis=-1)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    size = frozen.provenance.image_size
    # Extraction resizes with Pillow's bilinear filter, which is antialiased and rounds; this does the same.
    resize = keras.layers.Resizing(size, size, interpolation="bilinear", antialias=True, name="resize")
    whole = keras.Model(features, probabilities, name="head")
    # Resizing's default is training=True. Keras passes it on to all later layers when the model is called or
    # exported without `training`, and dropout would then drop values in inference.
    resized = resize(image, training=False)
    return keras.Model(image, whole(frozen.build()(resized)), name="tlray")
