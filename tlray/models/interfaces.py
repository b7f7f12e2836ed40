"""The classes that a plugin author subclasses: a backbone, a head or a weights provider."""

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
    """Pretrained weights of a backbone, with the digest by which tlray verifies them on each use.

    Raises:
        ValueError: neither or both of `sha256` and `file_hash` are given.
    """

    sha256: str = ""
    """SHA-256 of the arrays, from `tlray.models.weights.digest`. Any file that holds them is accepted."""
    url: str = ""
    """URL of a Keras 2 `.h5` file; tlray looks in the Keras cache and asks providers before a download."""
    file_hash: str = ""
    """MD5 or SHA-256 of the file at `url`, in hexadecimal. Only this exact file is accepted."""

    def __post_init__(self) -> None:
        if bool(self.sha256) == bool(self.file_hash):
            raise ValueError("KnownWeights needs either sha256 or file_hash, and not both")


class Backbone(ABC):
    """A network without its classifier: it turns an image into features.

    Subclass it and register the class, whose constructor takes no arguments, as an entry point in the
    group `tlray.backbones`. Import Keras inside the methods, not at the top of the module, so that
    commands that need no network start without TensorFlow.
    """

    name: ClassVar[str]
    """Name on the command line. The entry point must have the same name."""
    image_size: ClassVar[int]
    """Default side length of the square input, in pixels."""
    minimum_size: ClassVar[int] = 1
    """Smallest side length of the input, in pixels, for which the network still has an output."""
    cuts: ClassVar[tuple[str, ...]]
    """Layers where the network can be cut, in order; the last is the output layer and the default cut."""
    reduced_precision: ClassVar[bool] = True
    """Whether `--precision auto` may choose bfloat16; False if bfloat16 is too inaccurate or not faster."""
    weights: ClassVar[Mapping[str, KnownWeights]] = {}
    """Pretrained weights by name; the first entry is the default. Empty: random weights by default."""

    @abstractmethod
    def build(self, image_size: int) -> keras.Model:
        """Build the network with untrained weights and without network access.

        Args:
            image_size: side length of the square input, in pixels.

        Returns:
            A model from preprocessed pixels, float32 (batch, image_size, image_size, 3), to features
            (batch, ...) of fixed size. tlray finds layers by name: name each layer explicitly, so that
            every call gives the same names.
        """

    @abstractmethod
    def preprocess(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        """Turn RGB pixels into the input that the weights were trained with.

        Args:
            pixels: symbolic float32 tensor (batch, image_size, image_size, 3), RGB, values 0 to 255.

        Returns:
            The symbolic input tensor for the network from `build`, of the same shape. Compute it with
            Keras' layers and `keras.ops` only, so that a saved model loads without this plugin.
        """


class Head(ABC):
    """A classifier: it turns features into class probabilities.

    Subclass it and register it like a `Backbone`, but in the entry-point group `tlray.heads`.
    """

    name: ClassVar[str]
    """Name on the command line. The entry point must have the same name."""
    loss: ClassVar[str] = ""
    """Name of a Keras loss. Empty: binary cross-entropy for one output, categorical for more."""
    optimizer: ClassVar[str] = "rmsprop"
    """Name of the Keras optimizer that trains the head unless the user chooses another."""
    learning_rate: ClassVar[float] = 1e-4
    """Learning rate of that optimizer unless the user gives another."""

    @abstractmethod
    def build(self, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
        """Build the classifier with untrained weights.

        Args:
            feature_shape: shape of one image's features, e.g. (4, 4, 512); their dtype is float32.
            classes: number of classes, at least 2.

        Returns:
            An uncompiled model from features (batch, *feature_shape) to probabilities (batch, classes).
            For two classes it may return (batch, 1) instead: the probability of the second class.
            Use Keras' own layers only, so that a saved model loads without this plugin.

        Raises:
            ValueError: the head cannot be built for this feature shape or number of classes.
        """


class WeightsProvider(ABC):
    """A source of pretrained weights on this machine, such as a file inside an installed package.

    Subclass it and register it like a `Backbone`, but in the entry-point group `tlray.weights`.
    """

    name: ClassVar[str]
    """Name of the provider. The entry point must have the same name."""
    offers: ClassVar[tuple[tuple[str, str], ...]]
    """The weights that `provide` returns without a download, as pairs (backbone name, weights name)."""

    @abstractmethod
    def provide(self, backbone: str, weights: str, folder: Path) -> Path | None:
        """Return a local file that holds the weights, or None if this provider does not have them.

        Args:
            backbone: name of the backbone.
            weights: name of the weights, e.g. "imagenet".
            folder: a temporary folder where the provider may write the file.

        Returns:
            The path of a Keras 2 `.h5` file, or of an `.npz` file with the arrays in the order of
            `keras.Model.get_weights`, each named "layer/variable".

        Raises:
            Exception: the weights cannot be read. tlray then asks the next provider, and shows the
                message if no other has the weights.
        """
