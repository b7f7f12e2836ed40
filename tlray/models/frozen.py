"""The frozen part of a network: the backbone from the pixels to the cut, with its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.models import registry, weights
from tlray.models.compiled import Network, chosen_precision, compile_network
from tlray.models.interfaces import Backbone
from tlray.models.layers import INPUT, Arrays, network_with
from tlray.models.provenance import Provenance

if TYPE_CHECKING:
    import keras

DEFAULT = "vgg16"
"""The name of the backbone that is used unless the user chooses another."""


@dataclass(frozen=True)
class FrozenPart:
    """A backbone, its weights and all settings of the frozen part; `build` makes the Keras model."""

    backbone: Backbone
    arrays: Arrays
    provenance: Provenance

    @classmethod
    def decide(cls, config: NetworkConfig, seed: int = 0) -> FrozenPart:
        """Load the backbone and its weights, fill in the defaults and check the settings.

        Args:
            config: the settings of the network; None stands for the default of the backbone.
            seed: the seed of random weights.

        Raises:
            UserError: the plugin is unknown or broken, the cut names no layer, the image size is
                too small, or the weights cannot be found.
        """
        plugin = registry.find("backbones", config.backbone or DEFAULT)
        backbone: Backbone = plugin.load()
        cut = config.cut or backbone.cuts[-1]
        if cut not in (INPUT, *backbone.cuts):
            network_with(backbone, cut)  # It takes time to build, so trust the names in `cuts`.
        size = config.image_size or backbone.image_size
        if size < backbone.minimum_size:
            raise UserError(f"--image-size {size}: {backbone.name} needs at least {backbone.minimum_size} px")
        name = config.weights or next(iter(backbone.weights), "none")
        resolved = weights.resolve(backbone, name, registry.weights_providers(), seed)
        provenance = Provenance(
            backbone=backbone.name,
            package=f"{plugin.package} {plugin.version}",
            weights=resolved.name,
            weights_sha256=resolved.sha256,
            cut=cut,
            preprocess=config.preprocess or "imagenet",
            image_size=size,
            precision=chosen_precision(backbone, config.precision),
            store=config.store,
        )
        return cls(backbone, resolved.arrays, provenance)

    @classmethod
    def of(cls, provenance: Provenance) -> FrozenPart:
        """Return the frozen part that made the features of that provenance.

        Raises:
            UserError: the installed plugins or the weights have changed since then.
        """
        settings = asdict(provenance)
        del settings["package"], settings["weights_sha256"]
        frozen = cls.decide(NetworkConfig(**settings))
        if differences := frozen.provenance.differences(provenance):
            raise UserError(
                f"the installed network is not the one that made the features: {'; '.join(differences)}; "
                "install the package or weights that made them, or extract the features again"
            )
        return frozen

    def build(self) -> keras.Model:
        """Build the model "frozen", from float32 pixels (batch, size, size, 3), 0 to 255, to the cut.

        Raises:
            UserError: the network cannot be built for this image size, or the weights do not fit it.
        """
        import keras

        size = self.provenance.image_size
        pixels = keras.Input((size, size, 3), name="input_pixels")  # No backbone has this name.
        if self.provenance.preprocess == "imagenet":
            output = self.backbone.preprocess(pixels)
        elif self.provenance.preprocess == "rescale":
            output = keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
        else:
            output = keras.layers.Identity(name="raw")(pixels)
        if self.provenance.cut != INPUT:
            whole = self.network()
            cut = whole.get_layer(self.provenance.cut).output
            output = keras.Model(whole.inputs, cut, name=self.backbone.name)(output)
        frozen = keras.Model(pixels, output, name="frozen")
        frozen.trainable = False
        return frozen

    def build_tail(self, end: str) -> keras.Model | None:
        """Build the model "tail", from the cut to the output of the layer `end`; None if `end` is the cut.

        Raises:
            UserError: `end` depends on other layers than the cut, or comes before it.
        """
        import keras

        cut = self.provenance.cut
        if end == cut:
            return None
        whole = self.network()
        start = whole.inputs[0] if cut == INPUT else whole.get_layer(cut).output
        try:
            return keras.Model(start, whole.get_layer(end).output, name="tail")
        except ValueError as error:
            raise UserError(
                f"{self.backbone.name} cannot be split at {cut}: {end} comes before it or also depends on "
                f"earlier layers; it can be split at {', '.join(self.backbone.cuts)}"
            ) from error

    def network(self) -> keras.Model:
        """Build the whole backbone, from preprocessed pixels to its last layer; raises as `build` does."""
        try:
            network = self.backbone.build(self.provenance.image_size)
            network.set_weights(self.arrays)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.backbone.name} at {self.provenance.image_size} px: {reason}") from error
        return network

    def compile(self, cpus: int = 0) -> Network:
        """Build the network and compile it, for all CPUs or for this many; raises as `build` does."""
        prepare_keras(cpus)
        return compile_network(self.build(), self.provenance.image_size, self.provenance.precision)

    def loader(self) -> Callable[[], Network]:
        """Return a function that compiles the network in an actor. Ray's object store carries the weights."""
        import ray

        return partial(_load, self.backbone, ray.put(list(self.arrays)), self.provenance)


def _load(backbone: Backbone, arrays: Any, provenance: Provenance) -> Network:
    import ray

    return FrozenPart(backbone, ray.get(arrays), provenance).compile(len(os.sched_getaffinity(0)))
