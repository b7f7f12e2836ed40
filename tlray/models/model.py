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
from tlray.images.listing import Images
from tlray.models.frozen import FrozenPart, Network, compile_network
from tlray.models.head import Head
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

    def images(self, uri: str) -> Images:
        """The images there, split as for training if they are those that the model was trained on.

        Raises:
            UserError: as of `Images.open`.
        """
        images = Images.open(uri)
        if Folder.open(uri).uri != self.manifest["images"]:
            return images
        return images.assign(self.manifest["split"], self.manifest["split_seed"])


def trained_part(frozen: FrozenPart, end: str, head: Head, classes: int) -> keras.Model:
    """What is trained: "tail", the backbone from the cut to `end`, if that is not the cut, and "classifier".

    Takes features at the cut, float32 (batch, *shape), to the output of the head.

    Raises:
        UserError: the network cannot be cut there, or the head does not fit it or the classes.
    """
    import keras

    tail = frozen.build_tail(end)
    shape = tail.input_shape if tail is not None else frozen.build().output_shape
    features = keras.Input(shape[1:], name="features")
    output = tail(features) if tail is not None else features
    classifier = build_head(head, output.shape[1:], classes)
    return keras.Model(features, classifier(output), name="trained")


def build_head(head: Head, feature_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build a head, as the model "classifier", and check what the plugin made.

    Raises:
        UserError: it does not fit the features or the classes.
    """
    import keras

    try:
        made = head.build(feature_shape, classes)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"head {head.name!r} does not fit features of shape {feature_shape}: {reason}"
        ) from error
    for layer in made._flatten_layers():
        if not type(layer).__module__.startswith("keras."):
            raise UserError(
                f"head {head.name!r} uses a layer of its own, {type(layer).__name__}, without which its "
                "model would not load: use Keras' layers and keras.ops"
            )
    width = made.output_shape[-1]
    if len(made.output_shape) != 2 or width not in ({1, 2} if classes == 2 else {classes}):
        raise UserError(
            f"head {head.name!r} does not fit {classes} classes: its output has shape {made.output_shape}, "
            f"expected (batch, {classes})"
        )
    return keras.Model(made.inputs, made.outputs[0], name="classifier")


def assemble(frozen: FrozenPart, trained: keras.Model) -> keras.Model:
    """The whole network, made of Keras' own layers only: "resize", "frozen", "head".

    Its input is "image", uint8 RGB (batch, height, width, 3) of any size; its output is
    (batch, classes) probabilities. "head" takes features to the same probabilities: it holds "tail",
    if anything of the backbone was trained, and "classifier".
    """
    import keras

    features = keras.Input(trained.input_shape[1:], name="features")
    probabilities = features
    for layer in trained.layers[1:]:
        probabilities = layer(probabilities)
    if probabilities.shape[-1] == 1:
        probabilities = keras.ops.concatenate([1 - probabilities, probabilities], axis=-1)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    size = frozen.provenance.image_size
    # As Pillow's bilinear filter, which extraction uses: antialiased, to whole numbers.
    resize = keras.layers.Resizing(size, size, interpolation="bilinear", antialias=True, name="resize")
    whole = keras.Model(features, probabilities, name="head")
    # Resizing's own default is training=True, which Keras hands on to all layers after it when the model is
    # called, or exported, without `training`: dropout would then be at work.
    resized = resize(image, training=False)
    return keras.Model(image, whole(frozen.build()(resized)), name="tlray")


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
