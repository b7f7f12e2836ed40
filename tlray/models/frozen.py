"""The frozen part of a network: built from a backbone, cut, compiled for the precision asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tlray.core.config import NetworkConfig
from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.models import registry, weights
from tlray.models.compiled import (
    Network,
    chosen_precision,
    compile_network,
)
from tlray.models.interfaces import Backbone
from tlray.models.layers import INPUT, Arrays, check_cut
from tlray.models.provenance import Provenance

if TYPE_CHECKING:
    import keras

DEFAULT = "vgg16"
"""The backbone that is used unless another is named."""


@dataclass(frozen=True)
class FrozenPart:
    """The frozen part of a network, decided on in full; nothing is built yet."""

    backbone: Backbone
    arrays: Arrays
    provenance: Provenance

    @classmethod
    def decide(cls, config: NetworkConfig, seed: int = 0) -> FrozenPart:
        """Find backbone and weights and check that they go with the rest.

        Args:
            config: settings.
            seed: of random weights.

        Raises:
            UserError: an unknown or broken plugin, an unknown layer, or weights that are not to be had.
        """
        plugin = registry.find("backbones", config.backbone or DEFAULT)
        backbone: Backbone = plugin.load()
        cut = config.cut or backbone.cuts[-1]
        check_cut(backbone, cut)
        size = config.image_size or backbone.image_size
        if size < backbone.minimum_size:
            raise UserError(
                f"--image-size {size}: {backbone.name} needs at least {backbone.minimum_size} pixels"
            )
        name = config.weights or next(iter(backbone.weights), "none")
        found = weights.resolve(backbone, name, registry.weights_providers(), seed)
        provenance = Provenance(
            backbone=backbone.name,
            package=f"{plugin.package} {plugin.version}",
            weights=found.name,
            weights_sha256=found.sha256,
            cut=cut,
            preprocess=config.preprocess or "imagenet",
            image_size=size,
            precision=chosen_precision(backbone, config.precision),
            store=config.store,
        )
        return cls(backbone, found.arrays, provenance)

    @classmethod
    def of(cls, provenance: Provenance) -> FrozenPart:
        """The frozen part that features were made with.

        Raises:
            UserError: this installation no longer has the same.
        """
        frozen = cls.decide(NetworkConfig(**provenance.options()))
        if differences := frozen.provenance.differences(provenance):
            raise UserError(
                f"the features were made with another network than is here: {'; '.join(differences)}"
            )
        return frozen

    def build(self) -> keras.Model:
        """The network "frozen" from pixels (batch, size, size, 3), 0 to 255, to the output of the cut.

        Raises:
            UserError: the network cannot be built at this size, or the weights do not fit it.
        """
        import keras

        size = self.provenance.image_size
        pixels = keras.Input((size, size, 3), name="input_pixels")  # No backbone is called so.
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
        """The network "tail", from the output of the cut to that of the layer `end`; None if that is the cut.

        Raises:
            UserError: what comes after the cut needs more than its output, or `end` comes before it.
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
                f"{self.backbone.name} cannot be split at {cut}: other paths lead around it to {end}, or it "
                f"comes later; it can be split at {', '.join(self.backbone.cuts)}"
            ) from error

    def network(self) -> keras.Model:
        """The whole network of the backbone, from preprocessed pixels to its end; errors as of `build`."""
        try:
            network = self.backbone.build(self.provenance.image_size)
            network.set_weights(self.arrays)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.backbone.name} at {self.provenance.image_size} px: {reason}") from error
        return network

    def loader(self) -> Callable[[], Network]:
        """What loads the network in an actor; the weights travel in Ray's object store."""
        import ray

        return partial(_load, self.backbone, ray.put(list(self.arrays)), self.provenance)


def _load(backbone: Backbone, arrays: Any, provenance: Provenance) -> Network:
    import ray

    prepare_keras(len(os.sched_getaffinity(0)))
    frozen = FrozenPart(backbone, ray.get(arrays), provenance)
    return compile_network(frozen.build(), provenance.image_size, provenance.precision)
