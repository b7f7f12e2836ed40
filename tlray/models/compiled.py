"""Compiles a Keras model into a fast function from pixels to features or probabilities."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray.models.interfaces import Backbone
from tlray.models.layers import backbone_layers

if TYPE_CHECKING:
    import keras

Network = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""A function from uint8 RGB pixels (batch, size, size, 3) to float32 features (batch, ...)."""


def chosen_precision(backbone: Backbone, asked: str) -> str:
    """Return the precision of a backbone; `asked` is a precision or "auto"."""
    if asked != "auto":
        return asked
    return fastest_precision() if backbone.reduced_precision else "float32"


def fastest_precision() -> str:
    """Return the fastest precision that this machine computes natively: "bfloat16" or "float32"."""
    with suppress(OSError, subprocess.SubprocessError, ValueError):  # Without an NVIDIA GPU, the CPU decides.
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        if output.strip():
            return "bfloat16" if all(float(line) >= 8.0 for line in output.split()) else "float32"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def compile_network(model: keras.Model, image_size: int, precision: str) -> Network:
    """Compile a model into a function that runs it in inference mode.

    Args:
        model: a model that takes pixels (batch, image_size, image_size, 3); its weights stay float32.
        image_size: the side length of the images, in pixels.
        precision: "float32", "bfloat16" or "float16"; the layers of the backbone use it, except those up
            to the first layer with weights.
    """
    import tensorflow as tf

    if precision != "float32":
        layers = backbone_layers(model)
        # The first layer with weights keeps float32, because bfloat16 is too coarse for pixel values. This
        # halves the error of VGG16's features and costs 1 % of the speed.
        first = next((number for number, layer in enumerate(layers) if layer.weights), len(layers))
        for layer in layers[first + 1 :]:
            layer.dtype_policy = f"mixed_{precision}"

    @tf.function(
        autograph=False,  # AutoGraph would leave a file in the temporary folder.
        input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.uint8)],
        jit_compile=False,
    )
    def run(pixels: Any) -> Any:
        return tf.cast(model(tf.cast(pixels, tf.float32), training=False), tf.float32)

    return lambda pixels: run(tf.constant(pixels)).numpy()
