"""A trained model on storage: its folder, and the whole network from image to probabilities."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.core.errors import UserError
from tlray.core.manifest import check_manifest
from tlray.core.runtime import prepare_keras
from tlray.core.storage import Folder
from tlray.models.compiled import Network, compile_network
from tlray.models.provenance import Provenance

if TYPE_CHECKING:
    import keras

MANIFEST = "manifest.json"
NETWORK = "model.keras"
FORMAT = "tlray-model/1"


@dataclass(frozen=True)
class Model:
    """A finished model folder."""

    folder: Folder
    manifest: Mapping[str, Any]
    provenance: Provenance
    """Of the features it was trained on."""

    @classmethod
    def open(cls, uri: str) -> Model:
        """Open a finished model.

        Raises:
            UserError: there is none, or its manifest is not one.
        """
        folder = Folder.open(uri)
        if not folder.is_file(MANIFEST):
            raise UserError(
                f"{folder.uri} is no model: it has no {MANIFEST}; "
                "expected the --out of `tlray fit` or `tlray finetune`"
            )
        try:
            manifest = json.loads(folder.read(MANIFEST))
            if manifest["format"] != FORMAT:
                raise UserError(f"{folder.uri} is a {manifest['format']}; expected a {FORMAT}")
            check_manifest(
                manifest,
                job=dict,
                classes=list,
                head=str,
                end=str,
                stages=list,
                images=str,
                history=list,
                created=str,
            )
            return cls(folder, manifest, Provenance.from_json(manifest["provenance"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder.join(MANIFEST)} is damaged: {error!r}; fit again") from error

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])


def load(data: bytes) -> keras.Model:
    """Load the bytes of a `model.keras`, in Keras' safe mode: no code comes out of the file.

    Raises:
        UserError: the file is no model of ours.
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
                f"{NETWORK} is damaged or not made by tlray: {str(error).splitlines()[0]}"
            ) from error
        return model


def loader(data: bytes, image_size: int, precision: str) -> Callable[[], Network]:
    """What loads a model in an actor, as a network from pixels of that size to probabilities."""
    import ray

    return partial(_load_network, ray.put(data), image_size, precision)


def _load_network(data: Any, image_size: int, precision: str) -> Network:
    import ray

    prepare_keras(len(os.sched_getaffinity(0)))
    return compile_network(without_resize(load(ray.get(data)), image_size), image_size, precision)


def without_resize(model: keras.Model, image_size: int) -> keras.Model:
    """The model from pixels (batch, image_size, image_size, 3) on."""
    import keras

    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    return keras.Model(pixels, model.get_layer("head")(model.get_layer("frozen")(pixels)))
