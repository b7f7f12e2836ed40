"""The frozen part of a network: built from a backbone, cut, compiled for the precision asked for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError, unknown
from tlray.core.runtime import prepare_keras
from tlray.models import registry, weights
from tlray.models.interfaces import Backbone
from tlray.models.provenance import Provenance
from tlray.models.weights import Arrays

if TYPE_CHECKING:
    import keras

DEFAULT = "vgg16"
"""The backbone that is used unless another is named."""
INPUT = "input"
"""The cut before the first layer."""

Network = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From RGB pixels (rows, size, size, 3) to one row of features each."""


@dataclass(frozen=True)
class FrozenPart:
    """The frozen part of a network, decided on in full; nothing is built yet."""

    backbone: Backbone
    arrays: Arrays
    provenance: Provenance

    @classmethod
    def decide(cls, config: NetworkConfig, seed: int = 0) -> FrozenPart:
        """Find backbone and weights and check that they go with the rest.

        Args:
            config: settings.
            seed: of random weights.

        Raises:
            UserError: an unknown or broken plugin, an unknown layer, or weights that are not to be had.
        """
        plugin = registry.find("backbones", config.backbone or DEFAULT)
        backbone: Backbone = plugin.load()
        cut = config.cut or backbone.cuts[-1]
        _check_cut(backbone, cut)
        size = config.image_size or backbone.image_size
        if size < backbone.minimum_size:
            raise UserError(
                f"--image-size {size}: {backbone.name} needs at least {backbone.minimum_size} pixels"
            )
        name = config.weights or next(iter(backbone.weights), "none")
        found = weights.resolve(backbone, name, registry.weights_providers(), seed)
        provenance = Provenance(
            backbone=backbone.name,
            package=f"{plugin.package} {plugin.version}",
            weights=found.name,
            weights_sha256=found.sha256,
            cut=cut,
            preprocess=config.preprocess or "imagenet",
            image_size=size,
            precision=chosen_precision(backbone, config.precision),
            store=config.store,
        )
        return cls(backbone, found.arrays, provenance)

    @classmethod
    def of(cls, provenance: Provenance) -> FrozenPart:
        """The frozen part that features were made with.

        Raises:
            UserError: this installation no longer has the same.
        """
        frozen = cls.decide(NetworkConfig(**provenance.options()))
        if differences := frozen.provenance.differences(provenance):
            raise UserError(
                f"the features were made with another network than is here: {'; '.join(differences)}"
            )
        return frozen

    def build(self) -> keras.Model:
        """The network "frozen" from pixels (batch, size, size, 3), 0 to 255, to the output of the cut.

        Raises:
            UserError: the network cannot be built at this size, or the weights do not fit it.
        """
        import keras

        size = self.provenance.image_size
        pixels = keras.Input((size, size, 3), name="input_pixels")  # No backbone is called so.
        if self.provenance.preprocess == "imagenet":
            output = self.backbone.preprocess(pixels)
        elif self.provenance.preprocess == "rescale":
            output = keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
        else:
            output = keras.layers.Identity(name="raw")(pixels)
        if self.provenance.cut != INPUT:
            whole = self.network()
            cut = whole.get_layer(self.provenance.cut).output
            output = keras.Model(whole.inputs, cut, name=self.backbone.name)(output)
        frozen = keras.Model(pixels, output, name="frozen")
        frozen.trainable = False
        return frozen

    def build_tail(self, end: str) -> keras.Model | None:
        """The network "tail", from the output of the cut to that of the layer `end`; None if that is the cut.

        Raises:
            UserError: what comes after the cut needs more than its output, or `end` comes before it.
        """
        import keras

        cut = self.provenance.cut
        if end == cut:
            return None
        whole = self.network()
        start = whole.inputs[0] if cut == INPUT else whole.get_layer(cut).output
        try:
            return keras.Model(start, whole.get_layer(end).output, name="tail")
        except ValueError as error:
            raise UserError(
                f"{self.backbone.name} cannot be split at {cut}: other paths lead around it to {end}, or it "
                f"comes later; it can be split at {', '.join(self.backbone.cuts)}"
            ) from error

    def network(self) -> keras.Model:
        """The whole network of the backbone, from preprocessed pixels to its end; errors as of `build`."""
        try:
            network = self.backbone.build(self.provenance.image_size)
            network.set_weights(self.arrays)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.backbone.name} at {self.provenance.image_size} px: {reason}") from error
        return network

    def loader(self) -> Callable[[], Network]:
        """What loads the network in an actor; the weights travel in Ray's object store."""
        import ray

        return partial(_load, self.backbone, ray.put(list(self.arrays)), self.provenance)


def _load(backbone: Backbone, arrays: Any, provenance: Provenance) -> Network:
    import ray

    prepare_keras(len(os.sched_getaffinity(0)))
    frozen = FrozenPart(backbone, ray.get(arrays), provenance)
    return compile_network(frozen.build(), provenance.image_size, provenance.precision)


def chosen_precision(backbone: Backbone, asked: str) -> str:
    """What a backbone computes in, where `asked` may be "auto"."""
    if asked != "auto":
        return asked
    return fastest_precision() if backbone.reduced_precision else "float32"


def fastest_precision() -> str:
    """The fastest precision that this machine computes natively: "bfloat16" or "float32"."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        if found.strip():
            return "bfloat16" if all(float(line) >= 8.0 for line in found.split()) else "float32"
    except (OSError, subprocess.SubprocessError, ValueError):
        pass  # No NVIDIA GPU: the CPU decides.
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _check_cut(backbone: Backbone, cut: str) -> None:
    """Raise UserError unless the backbone has a layer of that name.

    Only a layer that the backbone does not list as a good cut costs the building of the network.
    """
    if cut != INPUT and cut not in backbone.cuts:
        _layer(backbone, cut)


def cut_before(backbone: Backbone, layer: str) -> str:
    """The cut that leaves a layer, and all that comes after it, to be trained.

    Raises:
        UserError: there is no such layer, or it does not follow on exactly one other.
    """
    if layer == INPUT:
        return INPUT
    found = _layer(backbone, layer)
    import keras

    if isinstance(found, keras.layers.InputLayer):
        return INPUT
    above = found.input
    if isinstance(above, list):
        raise UserError(
            f"{backbone.name} cannot be split before {layer}, which joins {len(above)} paths: "
            f"choose a layer after one of {', '.join(backbone.cuts)}"
        )
    producer = above._keras_history.operation
    if not isinstance(producer, keras.Layer):
        raise UserError(
            f"{backbone.name} cannot be split before {layer}, which follows on no layer with a name of its "
            f"own: choose a layer after one of {', '.join(backbone.cuts)}, or {INPUT}"
        )
    return INPUT if isinstance(producer, keras.layers.InputLayer) else str(producer.name)


def _layer(backbone: Backbone, name: str) -> keras.Layer:
    prepare_keras(gpu=False)
    layers = {layer.name: layer for layer in backbone.build(backbone.image_size).layers}
    if name not in layers:
        raise unknown(f"layer of {backbone.name}", name, [INPUT, *layers])
    return layers[name]


def compile_network(model: keras.Model, image_size: int, precision: str) -> Network:
    """The function that runs a model on uint8 pixels, in inference mode, at full speed.

    Args:
        model: takes pixels (batch, image_size, image_size, 3); its weights stay float32.
        image_size: in pixels.
        precision: "float32", "bfloat16" or "float16": what the backbone computes in, after its first
            layer with weights.
    """
    import keras
    import tensorflow as tf

    if precision != "float32":
        policy = keras.DTypePolicy(f"mixed_{precision}")
        layers = _backbone_layers(model)
        # What sees the pixels keeps float32: bfloat16 has no room for their 256 values. That
        # halves the error of VGG16's features and costs one hundredth of the speed.
        first = next((place for place, layer in enumerate(layers) if layer.weights), len(layers))
        for layer in layers[first + 1 :]:
            layer.dtype_policy = policy

    @tf.function(
        autograph=False,  # Its conversion would leave a file in the temporary folder.
        input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.uint8)],
        jit_compile=False,
    )
    def run(pixels: Any) -> Any:
        return tf.cast(model(tf.cast(pixels, tf.float32), training=False), tf.float32)

    def network(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        output: npt.NDArray[np.float32] = run(tf.constant(pixels)).numpy()
        return output

    return network


def _backbone_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of the backbone in a frozen part, or in a whole model, in their order."""
    import keras

    parts = [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]
    inside = [network for part in parts for network in part.layers if isinstance(network, keras.Model)]
    return [
        layer
        for network in inside
        if network.name not in ("frozen", "head", "classifier")
        for layer in network._flatten_layers(include_self=False)
        if not isinstance(layer, keras.Model)
    ]


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
    trained = {layer.name: layer for layer in _backbone_layers(model)}
    for layer in network.layers:
        for leaf in layer._flatten_layers():
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
