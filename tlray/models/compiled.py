"""A network as a function on pixels, compiled for a precision."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray.models.interfaces import Backbone
from tlray.models.layers import backbone_layers

if TYPE_CHECKING:
    import keras


Network = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""From RGB pixels (rows, size, size, 3) to one row of features each."""


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
        layers = backbone_layers(model)
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
