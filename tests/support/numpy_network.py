"""The backbone grey-pixels in NumPy, for jobs whose network does not matter: no actor imports TensorFlow.

Run as a module, it is the command line with that network.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tlray.models import weights
from tlray.models.compiled import Network
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Backbone

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def grey_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Grey values (rows, size * size) from 0 to 1, of RGB pixels (rows, size, size, 3)."""
    return (pixels @ LUMA / 255).reshape(len(pixels), -1)


def load() -> Network:
    """What an actor calls."""
    return grey_pixels


def load_classes() -> Network:
    """In place of a model of two classes: all images are of the second."""
    return lambda pixels: np.tile(np.array([0.25, 0.75], np.float32), (len(pixels), 1))


@contextmanager
def installed() -> Iterator[None]:
    """In the block grey-pixels is computed here; other backbones are as always."""
    load_other, resolve_other = FrozenPart.loader, weights.resolve

    def loader(frozen: FrozenPart) -> Callable[[], Network]:
        return load if frozen.backbone.name == "grey-pixels" else load_other(frozen)

    def resolve(backbone: Backbone, *given: Any) -> weights.Weights:
        if backbone.name != "grey-pixels":
            return resolve_other(backbone, *given)
        return weights.Weights("none", weights.digest([]), [])  # Keras would have to build it to find none.

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FrozenPart, "loader", loader)
        patched.setattr(weights, "resolve", resolve)
        yield


if __name__ == "__main__":
    from tests.support import numpy_network  # By this name actors find it.
    from tlray.cli import main

    with numpy_network.installed():
        main()
