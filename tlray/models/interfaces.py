"""What a backbone plugin is: a network with named layers that can be cut, and its preprocessing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
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
