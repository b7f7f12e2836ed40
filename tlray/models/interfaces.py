"""What the author of a plugin subclasses: a backbone, a head, or a provider of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class KnownWeights:
    """Weights that a backbone knows by name, with the one digest that tells them from others.

    Raises:
        ValueError: no digest, or both.
    """

    sha256: str = ""
    """Of their arrays: see `tlray.models.weights.digest`. Wherever these come from, they are taken."""
    url: str = ""
    """A Keras 2 `.h5` file; looked for in the Keras cache under its last part, and downloaded at last."""
    file_hash: str = ""
    """MD5 or SHA-256 of that file, in hexadecimal, if that is what is published. Only this file is taken."""

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.file_hash):
            raise ValueError("weights that have a name need either sha256 or file_hash")


class Backbone(ABC):
    """A network without its classifier. Subclass it and register the class as an entry point.

    The class is instantiated without arguments. Its module must import without Keras (import it
    in the methods): commands that need no network do without TensorFlow.
    """

    name: ClassVar[str]
    """The name on the command line; the same as the entry point's."""
    image_size: ClassVar[int]
    """Default side of the square input, in pixels."""
    minimum_size: ClassVar[int] = 1
    """The smallest input that leaves a feature map, in pixels."""
    cuts: ClassVar[tuple[str, ...]]
    """Layers that make good cuts, from the input to the end; the last is the default cut."""
    reduced_precision: ClassVar[bool] = True
    """Whether `--precision auto` is bfloat16 where the hardware has it; False if that does it no good."""
    weights: ClassVar[Mapping[str, KnownWeights]] = {}
    """By name; the first are the default. Empty: there are none, and training starts from random ones."""

    @abstractmethod
    def build(self, image_size: int) -> keras.Model:
        """The network from preprocessed pixels, float32 (batch, image_size, image_size, 3), to features.

        Built without weights and without network access. Layer names must be the same every time.
        """

    @abstractmethod
    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        """What the weights were trained with, or are to be, as a part of the graph.

        Args:
            pixels: symbolic float32 tensor (batch, image_size, image_size, 3), RGB, 0 to 255.

        Returns:
            The symbolic tensor that `build`'s network takes. Only layers and `keras.ops` may be
            used, so that the model saves and loads without any code of the plugin.
        """


class Head(ABC):
    """A classifier on features. Subclass it and register the class as an entry point.

    The class is instantiated without arguments; its module must import without Keras.
    """

    name: ClassVar[str]
    """The name on the command line; the same as the entry point's."""
    loss: ClassVar[str] = ""
    """A Keras loss by name. Empty: binary cross-entropy for one output, categorical for more."""
    optimizer: ClassVar[str] = "rmsprop"
    """A Keras optimizer by name, used unless the user names another."""
    learning_rate: ClassVar[float] = 1e-4
    """Used unless the user gives another."""

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        """The network from features to probabilities.

        Args:
            feature_shape: shape of one row of features, e.g. (4, 4, 512), float32.
            classes: how many classes there are, at least 2.

        Returns:
            An uncompiled model of Keras' own layers, so that it loads anywhere. Its output is
            (batch, classes) probabilities, or for two classes, if the head likes, (batch, 1): the
            probability of the second class.

        Raises:
            ValueError: the head does not fit these features or this number of classes.
        """


class WeightsProvider(ABC):
    """Brings weights that are already on this machine, e.g. inside another package.

    Subclass it and register the class as an entry point in the group `tlray.weights`.
    """

    name: ClassVar[str]
    """The same as the entry point's name."""
    offers: ClassVar[tuple[tuple[str, str], ...]]
    """The (backbone, weights) pairs that this provider has, without any download."""

    @abstractmethod
    def provide(self, backbone: str, weights: str, folder: Path) -> Path | None:
        """A local file with these weights, or None if this provider does not have them.

        Args:
            backbone: name of the backbone.
            weights: name of its weights, e.g. "imagenet".
            folder: a temporary folder that the file may be written to.

        Returns:
            A Keras `.h5` file, or an `.npz` file with the arrays in Keras order, each named
            "layer/variable".
        """
