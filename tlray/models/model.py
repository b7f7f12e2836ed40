"""The folder of a trained model, and the network in it, from image to class probabilities."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from tlray.core.errors import JobError, UserError
from tlray.core.manifest import MANIFEST, Manifest, read_manifest
from tlray.core.results import Account, TrainingSummary
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder, StrPath
from tlray.models.compiled import Network, compile_network
from tlray.models.provenance import Provenance

if TYPE_CHECKING:
    import keras

NETWORK = "model.keras"
FORMAT = "tlray-model/1"
_STAGE = {"from", "head", "augment", "monitor", "epochs", "kept_epoch", "stopped_epoch", "metrics", "history"}
"""The entries of a stage that are read."""


@dataclass(frozen=True, kw_only=True)
class ModelManifest(Manifest, TrainingSummary):
    """The manifest of a model: what it is and how it was trained."""

    job: dict[str, Any]
    """The settings and input of the training: everything that determines the weights."""
    provenance: Provenance
    """The provenance of the features that the trained part takes."""
    end: str
    """The layer of the backbone whose output the head takes."""
    head: str
    """The name of the head."""
    classes: list[str]
    """The class names in the order of the model's output."""
    images: str
    """The URI of the training images."""
    split: float | None
    """The fraction of images that tlray assigned to `train`; None if it assigned no splits."""
    split_seed: int | None
    """The seed of that assignment."""
    account: Account | None = None
    """What was understood of the images; None in models that older versions of tlray have made."""
    stages: list[dict[str, Any]]
    """The trainings that led to this model, the oldest first."""
    versions: dict[str, str]
    """The versions of Python and of the packages that influence the numbers."""
    created: str
    """The time when the model was complete, in ISO 8601, UTC."""

    def __post_init__(self) -> None:
        missing = {f"stages.{name}" for stage in self.stages for name in _STAGE - stage.keys()}
        missing |= {f"job.{name}" for name in {"training"} - self.job.keys()}
        if missing:
            raise ValueError(f"{min(missing)} is missing")


@dataclass(frozen=True)
class Model:
    """A finished model folder."""

    folder: Folder
    manifest: ModelManifest

    @classmethod
    def open(cls, path: StrPath) -> Model:
        """Open a finished model.

        Args:
            path: the local folder or URI of the model.

        Raises:
            UserError: the folder holds no finished model, or its manifest is damaged.
        """
        folder = Folder.open(path)
        if not folder.is_file(MANIFEST):
            raise UserError(
                f"{folder.uri} is not a finished model: it has no {MANIFEST}; "
                "expected the --out of `tlray fit` or `tlray finetune`"
            )
        return cls(folder, read_manifest(folder, ModelManifest, FORMAT))

    @property
    def provenance(self) -> Provenance:
        """The provenance of the features that the trained part takes."""
        return self.manifest.provenance

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that tell this model from any other."""
        return {"model": self.folder.uri, "model_created": self.manifest.created}

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the model's output."""
        return self.manifest.classes

    def check_output(self, probabilities: npt.NDArray[Any], path: str) -> None:
        """Raise JobError unless the output of the model, for images of which `path` is one, is finite."""
        if not np.isfinite(probabilities).all():
            raise not_finite(self.folder.uri, path)

    def read(self) -> bytes:
        """Read the file of the network.

        Raises:
            JobError: the file is missing or damaged.
        """
        try:
            data = self.folder.read(NETWORK)
            # Keras reads parts of the files in the archive, and compares no checksums.
            if name := ZipFile(io.BytesIO(data)).testzip():
                raise ValueError(f"the checksum of {name} does not match")
            return data
        except Exception as error:
            path = self.folder.join(NETWORK)
            raise JobError(
                f"{path} cannot be read: {error}; if it is damaged, train the model again"
            ) from error

    def load(self) -> keras.Model:
        """Load the network, from uint8 RGB images (batch, height, width, 3) of any size to (batch, classes).

        Raises:
            UserError: the file was not made by tlray.
            JobError: the file is missing or damaged.
        """
        prepare_keras()
        return load(self.read())


def not_finite(model: str, path: str) -> JobError:
    return JobError(
        f"{model} gives probabilities that are not finite, e.g. for {path}: its weights are damaged or its "
        "training has diverged; train it again, with a smaller --learning-rate"
    )


def load(data: bytes) -> keras.Model:
    """Load the bytes of a `model.keras` in Keras' safe mode, which runs no code from the file.

    Raises:
        UserError: the file is damaged or was not made by tlray.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        path = Path(folder, NETWORK)
        path.write_bytes(data)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            for layer in ("resize", "frozen", "head"):
                model.get_layer(layer)
            model.get_layer("head").get_layer("classifier")
        except Exception as error:
            raise UserError(
                f"{NETWORK} is damaged or was not made by tlray: {str(error).splitlines()[0]}"
            ) from error
        return model


def loader(data: bytes, image_size: int, precision: str) -> Callable[[], Network]:
    """Return a function that loads a model in an actor, from pixels of that size to probabilities."""
    import ray

    return partial(_load_network, ray.put(data), image_size, precision)


def _load_network(data: Any, image_size: int, precision: str) -> Network:
    import ray

    prepare_keras(len(os.sched_getaffinity(0)))
    return compiled(load(ray.get(data)), image_size, precision)


def compiled(model: keras.Model, image_size: int, precision: str) -> Network:
    """Return a model without its resizing as a fast function, for pixels of that size."""
    import keras

    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    model = keras.Model(pixels, model.get_layer("head")(model.get_layer("frozen")(pixels)))
    return compile_network(model, image_size, precision)
