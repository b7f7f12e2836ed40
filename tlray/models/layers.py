"""Where a network can be cut, by the names of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
"""The cut before the first layer."""


def check_cut(backbone: Backbone, cut: str) -> None:
    """Raise UserError unless the backbone has a layer of that name.

    Only a layer that the backbone does not list as a good cut costs the building of the network.
    """
    if cut != INPUT and cut not in backbone.cuts:
        _network_with(backbone, cut)


def cut_before(backbone: Backbone, layer: str) -> str:
    """The cut that leaves a layer, and all that comes after it, to be trained.

    Raises:
        UserError: there is no such layer, or it does not follow on exactly one other.
    """
    if layer == INPUT:
        return INPUT
    network = _network_with(backbone, layer)
    import keras

    found = network.get_layer(layer)
    if isinstance(found, keras.layers.InputLayer):
        return INPUT
    above = found.input
    if isinstance(above, list):
        raise UserError(
            f"{backbone.name} cannot be split before {layer}, which joins {len(above)} paths: "
            f"choose a layer after one of {', '.join(backbone.cuts)}"
        )
    if above is network.inputs[0]:
        return INPUT
    producers = [other.name for other in network.layers if other.output is above]
    if not producers:
        raise UserError(
            f"{backbone.name} cannot be split before {layer}, which follows on no layer with a name of its "
            f"own: choose a layer after one of {', '.join(backbone.cuts)}, or {INPUT}"
        )
    return str(producers[0])


def _network_with(backbone: Backbone, name: str) -> keras.Model:
    """The whole network. Raises UserError if it has no layer of that name."""
    prepare_keras(gpu=False)
    network = backbone.build(backbone.image_size)
    names = [layer.name for layer in network.layers]
    if name not in names:
        raise unknown(f"layer of {backbone.name}", name, [INPUT, *names])
    return network


def backbone_arrays(model: keras.Model, backbone: Backbone, image_size: int, end: str) -> Arrays:
    """The weights of a backbone in Keras order, as they are in a whole model that uses it up to `end`.

    Layers after that have the random weights of "none".

    Raises:
        UserError: the backbone's layers have other names than when the model was made.
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
                    f"the model has no layer {leaf.name} of {backbone.name}: a backbone must give its layers "
                    "the same names every time it is built"
                )
    arrays: Arrays = network.get_weights()
    return arrays


def layers_up_to(backbone: Backbone, cut: str) -> set[str]:
    """The names of the layers before a cut."""
    import keras

    if cut == INPUT:
        return set()
    whole = backbone.build(backbone.image_size)
    return {layer.name for layer in keras.Model(whole.inputs, whole.get_layer(cut).output).layers}


def backbone_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of the backbone in a frozen part, or in a whole model, in their order."""
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
