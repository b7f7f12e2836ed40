"""A trained model on storage: its folder, and the whole network from image to probabilities."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.errors import UserError
from tlray.network import FrozenPart, Network, compile_network
from tlray.provenance import Provenance, check_manifest
from tlray.storage import Folder

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
                f"{folder.uri} is no model: it has no {MANIFEST}; expected the --out of `tlray fit`"
            )
        try:
            manifest = json.loads(folder.read(MANIFEST))
            if manifest["format"] != FORMAT:
                raise UserError(f"{folder.uri} is a {manifest['format']}; expected a {FORMAT}")
            check_manifest(manifest, job=dict, classes=list, history=list, head=str, created=str)
            return cls(folder, manifest, Provenance.from_json(manifest["provenance"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder.join(MANIFEST)} is damaged: {error!r}; fit again") from error

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])


def assemble(frozen: FrozenPart, head: keras.Model) -> keras.Model:
    """The whole network, made of Keras' own layers only: "resize", "frozen", "head".

    Its input is "image", uint8 RGB (batch, height, width, 3) of any size; its output is
    (batch, classes) probabilities. "head" takes features to the same probabilities.
    """
    import keras

    features = keras.Input(head.input_shape[1:], name="features")
    probabilities = head(features)
    if probabilities.shape[-1] == 1:
        probabilities = keras.ops.concatenate([1 - probabilities, probabilities], axis=-1)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    size = frozen.provenance.image_size
    # As Pillow's bilinear filter, which extraction uses: antialiased, to whole numbers.
    resize = keras.layers.Resizing(size, size, interpolation="bilinear", antialias=True, name="resize")
    whole = keras.Model(features, probabilities, name="head")
    return keras.Model(image, whole(frozen.build()(resize(image))), name="tlray")


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

    return compile_network(without_resize(load(ray.get(data)), image_size), image_size, precision)


def without_resize(model: keras.Model, image_size: int) -> keras.Model:
    """The model from pixels (batch, image_size, image_size, 3) on."""
    import keras

    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    return keras.Model(pixels, model.get_layer("head")(model.get_layer("frozen")(pixels)))
