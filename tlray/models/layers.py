"""The layers of a network by name, and the places where it can be cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from tlray.core import private
from tlray.core.errors import UserError, unknown
from tlray.core.runtime import prepare_keras
from tlray.models.interfaces import Backbone

if TYPE_CHECKING:
    import keras

Arrays = Sequence[npt.NDArray[np.float32]]
INPUT = "input"
"""The name of the cut before the first layer."""


def cut_before(backbone: Backbone, layer: str) -> str:
    """Return the cut right before a layer, so that this layer and all later ones are trained.

    Raises:
        UserError: the layer does not exist, or its input is not the output of exactly one layer.
    """
    if layer == INPUT:
        return INPUT
    network = network_with(backbone, layer)
    first_trained = network.get_layer(layer)
    source = first_trained.input
    if network.inputs[0] is first_trained.output or network.inputs[0] is source:
        return INPUT
    for producer in network.layers:
        if producer.output is source:
            return str(producer.name)
    reason = f"it joins {len(source)} paths" if isinstance(source, list) else "its input comes from no layer"
    raise UserError(
        f"{backbone.name} cannot be split before {layer}, because {reason}: "
        f"choose a layer after one of {', '.join(backbone.cuts)}, or {INPUT}"
    )


def network_with(backbone: Backbone, name: str) -> keras.Model:
    """Build the whole network, and raise UserError if it has no layer of that name."""
    prepare_keras(gpu=False)
    network = backbone.build(backbone.image_size)
    names = [layer.name for layer in network.layers]
    if name not in names:
        raise unknown(f"layer of {backbone.name}", name, [INPUT, *names])
    return network


def backbone_arrays(model: keras.Model, backbone: Backbone, image_size: int, end: str) -> Arrays:
    """Return the backbone's weights in Keras order, copied from a trained model that uses it up to `end`.

    Layers after `end` get the random weights of seed 0.

    Raises:
        UserError: the model lacks a layer of the backbone: it had another name when the model was made.
    """
    import keras

    keras.utils.set_random_seed(0)
    network = backbone.build(image_size)
    used = layers_up_to(backbone, end)
    trained = {layer.name: layer for layer in backbone_layers(model)}
    for layer in network.layers:
        for leaf in private.flatten_layers(layer):
            if isinstance(leaf, keras.Model) or not leaf.weights:
                continue
            if leaf.name in trained:
                leaf.set_weights(trained[leaf.name].get_weights())
            elif layer.name in used:
                raise UserError(
                    f"the model has no layer {leaf.name} of {backbone.name}: the backbone must give its "
                    "layers the same names every time it is built"
                )
    return cast("Arrays", network.get_weights())


def layers_up_to(backbone: Backbone, cut: str) -> set[str]:
    """The names of the layers up to and including the layer `cut`; none if it is `INPUT`."""
    import keras

    if cut == INPUT:
        return set()
    whole = backbone.build(backbone.image_size)
    return {layer.name for layer in keras.Model(whole.inputs, whole.get_layer(cut).output).layers}


def backbone_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of the backbone inside a frozen part or a whole model, in their order."""
    import keras

    parts = [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]
    inside = [network for part in parts for network in part.layers if isinstance(network, keras.Model)]
    return [
        layer
        for network in inside
        if network.name not in ("frozen", "head", "classifier")
        for layer in private.flatten_layers(network)
        if not isinstance(layer, keras.Model)
    ]


def foreign_layers(model: keras.Model) -> list[str]:
    """The names of the layer classes in a model that are not Keras' own."""
    classes = {type(layer) for layer in private.flatten_layers(model)}
    names = sorted(f"{layer.__module__}.{layer.__name__}" for layer in classes)
    return [name for name in names if not name.startswith("keras.")]
