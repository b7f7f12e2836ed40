"""The networks of keras.applications as backbones: one table, and one class made of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tlray import Backbone, KnownWeights

if TYPE_CHECKING:
    import keras

_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_POOL = "avg_pool"
"""The last layer of most networks, as Keras calls it in those that have their classifier."""


@dataclass(frozen=True)
class Pixels:
    """What a network takes in place of RGB pixels, 0 to 255: these times `scale` plus `offset`."""

    scale: Sequence[float] | float
    offset: Sequence[float] | float
    bgr: bool = False
    """First turned into blue, green, red."""


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels of ImageNet, 0 to 1, as most networks were trained with."""
_CAFFE = Pixels(1.0, (-103.939, -116.779, -123.68), bgr=True)
_SIGNED = Pixels(1 / 127.5, -1.0)
_STANDARD = Pixels(
    tuple(1 / (255 * deviation) for deviation in _DEVIATION),
    tuple(-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
)


@dataclass(frozen=True)
class Network:
    """One network of keras.applications, and what Keras does not say of it in one place."""

    paper: str
    function: str
    """Its name in keras.applications."""
    size: int
    pixels: Pixels
    cuts: Sequence[str]
    file: str
    """Of the ImageNet weights without the classifier, under `_URL`."""
    file_hash: str
    """As Keras checks it; MobileNet's and MobileNetV2's, which it does not check, are of a public list that
    has Keras' own values for all others."""
    smallest: int = 32
    pooling: str | None = "avg"
    """None: the network's own classifier has none either."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of the function."""


_OWN_PIXELS = {"include_preprocessing": False}
"""It would be in the network, where `--preprocess` could not leave it out; it has no weights."""


def _resnet(function: str, pixels: Pixels, blocks: Sequence[int], last: Sequence[str], md5: str) -> Network:
    version = 2 if function.endswith("V2") else 1
    return Network(
        paper="He et al. 2016, arXiv:1603.05027" if version == 2 else "He et al. 2015, arXiv:1512.03385",
        function=function,
        size=224,
        pixels=pixels,
        cuts=["pool1_pool", *(f"conv{i}_block{count}_out" for i, count in enumerate(blocks, 2)), *last],
        file=f"resnet/{function.lower()}_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_hash=md5,
    )


def _efficientnet_v2(size: str, side: int, pixels: Pixels, repeats: Sequence[int], md5: str) -> Network:
    ends = [f"block{i}{'abcdefghijklmnopqrstuvwxyz'[count - 1]}_add" for i, count in enumerate(repeats, 1)]
    return Network(
        paper="Tan and Le 2021, arXiv:2104.00298",
        function=f"EfficientNetV2{size}",
        size=side,
        pixels=pixels,
        cuts=[
            "block1a_project_activation" if repeats[0] == 1 else ends[0],
            *ends[1:],
            "top_activation",
            _POOL,
        ],
        file=f"efficientnet_v2/efficientnetv2-{size.lower()}_notop.h5",
        file_hash=md5,
        options=_OWN_PIXELS,
    )


def _mobilenet_v3(size: str, blocks: Sequence[str], last: str, md5: str) -> Network:
    return Network(
        paper="Howard et al. 2019, arXiv:1905.02244",
        function=f"MobileNetV3{size}",
        size=224,
        pixels=_SIGNED,
        cuts=[*(f"expanded_conv{block}" for block in blocks), last, _POOL],
        file=f"mobilenet_v3/weights_mobilenet_v3_{size.lower()}_224_1.0_float_no_top_v2.h5",
        file_hash=md5,
        options=_OWN_PIXELS,
    )


NETWORKS = {
    "convnext-tiny": Network(
        paper="Liu et al. 2022, arXiv:2201.03545",
        function="ConvNeXtTiny",
        size=224,
        pixels=_STANDARD,
        cuts=(
            *(f"convnext_tiny_{end}" for end in ("stem", *(f"downsampling_block_{i}" for i in range(3)))),
            _POOL,
            "layer_normalization",
        ),
        file="convnext/convnext_tiny_notop.h5",
        file_hash="d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        options=_OWN_PIXELS,
    ),
    "densenet121": Network(
        paper="Huang et al. 2017, arXiv:1608.06993",
        function="DenseNet121",
        size=224,
        pixels=_STANDARD,
        cuts=("pool1", "pool2_pool", "pool3_pool", "pool4_pool", "relu", _POOL),
        file="densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_hash="30ee3e1110167f948a6b9946edeeb738",
    ),
    "efficientnet-v2-b0": _efficientnet_v2(
        "B0", 224, _STANDARD, (1, 2, 2, 3, 5, 8), "893217f2bb855e2983157299931e43ff"
    ),
    "efficientnet-v2-s": _efficientnet_v2(
        "S", 384, Pixels(1 / 128, -1.0), (2, 4, 4, 6, 9, 15), "af0682fb74e8c54910f2d4393339c070"
    ),
    "inception-v3": Network(
        paper="Szegedy et al. 2015, arXiv:1512.00567",
        function="InceptionV3",
        size=299,
        smallest=75,
        pixels=_SIGNED,
        cuts=[*(f"mixed{i}" for i in range(11)), _POOL],
        file="inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_hash="bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "mobilenet": Network(
        paper="Howard et al. 2017, arXiv:1704.04861",
        function="MobileNet",
        size=224,
        pixels=_SIGNED,
        cuts=[*(f"conv_pw_{i}_relu" for i in (1, 3, 5, 11, 13)), _POOL],
        file="mobilenet/mobilenet_1_0_224_tf_no_top.h5",
        file_hash="725ccbd03d61d7ced5b5c4cd17e7d527",
    ),
    "mobilenet-v2": Network(
        paper="Sandler et al. 2018, arXiv:1801.04381",
        function="MobileNetV2",
        size=224,
        pixels=_SIGNED,
        cuts=(
            "expanded_conv_project_BN",
            *(f"block_{block}" for block in ("2_add", "5_add", "9_add", "12_add", "15_add", "16_project_BN")),
            "out_relu",
            _POOL,
        ),
        file="mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        file_hash="f1a68526548f7541cda07e19ba6c85f4",
    ),
    "mobilenet-v3-large": _mobilenet_v3(
        "Large",
        ("_add", "_2_add", "_5_add", "_9_add", "_11_add", "_14_add"),
        "activation_19",
        "07fb09a5933dd0c8eaafa16978110389",
    ),
    "mobilenet-v3-small": _mobilenet_v3(
        "Small",
        ("_project_bn", "_2_add", "_5_add", "_7_add", "_10_add"),
        "activation_17",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "resnet50": _resnet("ResNet50", _CAFFE, (3, 4, 6, 3), [_POOL], "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet50-v2": _resnet(
        "ResNet50V2", _SIGNED, (3, 4, 6, 3), ["post_relu", _POOL], "fac2f116257151a9d068a22e544a4917"
    ),
    "vgg19": Network(
        paper="Simonyan and Zisserman 2014, arXiv:1409.1556",
        function="VGG19",
        size=224,
        pixels=_CAFFE,
        cuts=[f"block{i}_pool" for i in range(1, 6)],
        file="vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_hash="253f8cb515780f3b799900260a226db6",
        pooling=None,
    ),
    "xception": Network(
        paper="Chollet 2016, arXiv:1610.02357",
        function="Xception",
        size=299,
        smallest=71,
        pixels=_SIGNED,
        cuts=("add", "add_1", "add_2", "add_10", "add_11", "block14_sepconv2_act", _POOL),
        file="xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
        file_hash="b0042744bf5b25fce3cb969f33bebb97",
    ),
}


class KerasApplication(Backbone):
    """What the classes made of the table have in common."""

    network: ClassVar[Network]

    def build(self, image_size: int) -> keras.Model:
        import keras

        model: keras.Model = getattr(keras.applications, self.network.function)(
            include_top=False,
            weights=None,
            input_shape=(image_size, image_size, 3),
            pooling=self.network.pooling,
            **self.network.options,
        )
        _name_as_the_first(model)
        return model

    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        import keras

        wanted = self.network.pixels
        if wanted.bgr:
            pixels = keras.ops.flip(pixels, axis=-1)
        return keras.layers.Rescaling(wanted.scale, wanted.offset, name="scale_pixels")(pixels)


def _name_as_the_first(model: keras.Model) -> None:
    """Name the layers that have no name of their own as if the network were the first in its process.

    Keras counts them over all networks: the `conv2d` of the first is the `conv2d_94` of the second.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    for operation in model.operations:
        kind, _, number = operation.name.rpartition("_")
        if not number.isdigit():
            kind, number = operation.name, "0"
        if kind.replace("_", "") == type(operation).__name__.lower():
            found.setdefault(kind, []).append((int(number), operation))
    for kind, operations in found.items():
        name = _POOL if kind == "global_average_pooling2d" else kind
        for place, (_, operation) in enumerate(sorted(operations, key=lambda pair: pair[0])):
            operation.name = f"{name}_{place}" if place else name


def _backbone(name: str, network: Network) -> type[KerasApplication]:
    url = _URL + network.file
    attributes = {
        "__doc__": f"{network.function} of keras.applications ({network.paper}).",
        "name": name,
        "image_size": network.size,
        "minimum_size": network.smallest,
        "cuts": tuple(network.cuts),
        "weights": {"imagenet": KnownWeights(url=url, file_hash=network.file_hash)},
        "network": network,
    }
    return type(network.function, (KerasApplication,), attributes)


# Entry points, and actors that are sent a backbone, find each class by its name in this module.
globals().update({network.function: _backbone(name, network) for name, network in NETWORKS.items()})
