"""The frozen part of a network: built from a backbone, cut, compiled for the precision asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray import plugins, weights
from tlray.backbone import Backbone
from tlray.config import NetworkConfig
from tlray.errors import UserError, unknown
from tlray.provenance import Provenance
from tlray.runtime import prepare_keras
from tlray.weights import Arrays

if TYPE_CHECKING:
    import keras

Network = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From RGB pixels (rows, size, size, 3) to one row of features each."""


@dataclass(frozen=True)
class FrozenPart:
    """The frozen part of a network, decided on in full; nothing is built yet."""

    backbone: Backbone
    arrays: Arrays
    provenance: Provenance

    @classmethod
    def decide(cls, config: NetworkConfig) -> FrozenPart:
        """Find backbone and weights and check that they go with the rest.

        Raises:
            UserError: an unknown or broken plugin, an unknown layer, or weights that are not to be had.
        """
        plugin = plugins.find("backbones", config.backbone)
        backbone: Backbone = plugin.load()
        cut = config.cut or backbone.cuts[-1]
        _check_cut(backbone, cut)
        size = config.image_size or backbone.image_size
        if size < backbone.minimum_size:
            raise UserError(
                f"--image-size {size}: {backbone.name} needs at least {backbone.minimum_size} pixels"
            )
        found = weights.resolve(backbone, config.weights, plugins.weights_providers())
        provenance = Provenance(
            backbone=backbone.name,
            package=f"{plugin.package} {plugin.version}",
            weights=found.name,
            weights_sha256=found.sha256,
            cut=cut,
            preprocess=config.preprocess,
            image_size=size,
            precision=fastest_precision() if config.precision == "auto" else config.precision,
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
        try:
            network = self.backbone.build(size)
            network.set_weights(self.arrays)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.backbone.name} at {size} px: {reason}") from error
        output = network.get_layer(self.provenance.cut).output
        network = keras.Model(network.inputs, output, name=self.backbone.name)
        pixels = keras.Input((size, size, 3), name="pixels")
        if self.provenance.preprocess == "imagenet":
            prepared = self.backbone.preprocess(pixels)
        elif self.provenance.preprocess == "rescale":
            prepared = keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
        else:
            prepared = pixels
        frozen = keras.Model(pixels, network(prepared), name="frozen")
        frozen.trainable = False
        return frozen

    def loader(self) -> Callable[[], Network]:
        """What loads the network in an actor; the weights travel in Ray's object store."""
        import ray

        return partial(_load, self.backbone, ray.put(list(self.arrays)), self.provenance)


def _load(backbone: Backbone, arrays: Any, provenance: Provenance) -> Network:
    import ray

    frozen = FrozenPart(backbone, ray.get(arrays), provenance)
    return compile_network(frozen.build(), provenance.image_size, provenance.precision)


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
    if cut in backbone.cuts:
        return
    prepare_keras()
    layers = [layer.name for layer in backbone.build(backbone.image_size).layers]
    if cut not in layers:
        raise unknown(f"layer of {backbone.name}", cut, layers)


def compile_network(model: keras.Model, image_size: int, precision: str) -> Network:
    """The function that runs a model on uint8 pixels, in inference mode, at full speed.

    Args:
        model: takes pixels (batch, image_size, image_size, 3); its weights stay float32.
        image_size: in pixels.
        precision: "float32", "bfloat16" or "float16": what the backbone computes in, but for its first layer.
    """
    import keras
    import tensorflow as tf

    if precision != "float32":
        policy = keras.DTypePolicy(f"mixed_{precision}")
        layers = _backbone_layers(model)
        # The layer that sees the pixels keeps float32: bfloat16 has no room for their 256 values.
        # That halves the error of VGG16's features and costs one hundredth of the speed.
        first = next((layer for layer in layers if layer.weights), None)
        for layer in layers:
            if layer is not first:
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
    """The layers of the backbone in a frozen part, or in a whole model that holds one."""
    import keras

    frozen = model if model.name == "frozen" else model.get_layer("frozen")
    inside = frozen.layers[-1]._flatten_layers(include_self=False)
    return [layer for layer in inside if not isinstance(layer, keras.Model)]
