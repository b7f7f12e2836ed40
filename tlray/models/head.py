"""What a head plugin is: the small network that is trained on the features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import keras


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
