"""The backbone under test: built, with weights, as a frozen part, and inside a whole model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.models import registry, weights
from tlray.models.assemble import assemble, trained_part
from tlray.models.compiled import compile_network
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Backbone
from tlray.models.layers import Arrays
from tlray.models.provenance import Provenance
from tlray.plugins.contract.check import TOLERANCE, Failed, Subject, explain, offline, relative_error, summary

if TYPE_CHECKING:
    import keras

_SMALL = 16
"""The side length of the test images in pixels, unless the backbone needs larger or smaller ones."""


@dataclass(frozen=True)
class _Built(FrozenPart):
    """A frozen part that shares one network instead of building it each time."""

    built: keras.Model

    def network(self) -> keras.Model:
        return self.built


class BackboneSubject(Subject[Backbone]):
    """The backbone under test, built for its default, its smallest and the test image size."""

    kind = "backbones"

    @cached_property
    def size(self) -> int:
        """The side length of the test images, in pixels."""
        return max(self.plugin.minimum_size, min(self.plugin.image_size, _SMALL))

    @cached_property
    def networks(self) -> dict[int, keras.Model]:
        """The networks by image size, the largest first."""
        prepare_keras(gpu=False)
        import keras

        keras.utils.set_random_seed(0)
        sizes = {self.plugin.image_size, self.size, self.plugin.minimum_size}
        return {size: self.build(size) for size in sorted(sizes, reverse=True)}

    def build(self, size: int) -> keras.Model:
        """Call the plugin's `build` without network access and explain its errors."""
        try:
            with offline():
                return self.plugin.build(size)
        except OSError as error:
            raise Failed(
                f"build({size}) used a file or the network ({summary(error)}): build the network without "
                "weights, because tlray finds and loads them"
            ) from error
        except (Exception, SystemExit) as error:
            raise Failed(
                f"build({size}) failed: {type(error).__name__}: {summary(error)}"
                + "; if this image size is too small, raise minimum_size" * (size < self.plugin.image_size)
            ) from error

    @cached_property
    def arrays(self) -> Arrays:
        """The first pretrained weights that need no download, or else random weights."""
        for name in weights.weights_here(self.plugin):
            with suppress(UserError), offline():
                return weights.resolve(self.plugin, name, registry.weights_providers()).arrays
        # Scale all 1-D weights a little, because a fresh batch normalisation does not change its input.
        rng, arrays = np.random.default_rng(0), self.networks[self.size].get_weights()
        return [
            array * rng.uniform(0.9, 1.1, array.shape).astype("f4") if array.ndim == 1 else array
            for array in arrays
        ]

    @cached_property
    def frozen(self) -> _Built:
        """The whole network with its weights, as a frozen part."""
        network, plugin = self.networks[self.size], registry.find(self.kind, self.name)
        with explain("the weights do not fit the network"):
            network.set_weights(self.arrays)
        provenance = Provenance(
            backbone=self.name,
            package=f"{plugin.package} {plugin.version}",
            weights="none",
            weights_sha256=weights.digest(self.arrays),
            cut=self.plugin.cuts[-1],
            preprocess="imagenet",
            image_size=self.size,
            precision="float32",
            store="float32",
        )
        return _Built(self.plugin, self.arrays, provenance, network)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """Test images, uint8 (8, size, size, 3), each made of 4 by 4 patches of random colours."""
        patches = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
        patch = np.arange(self.size) * 4 // self.size
        return patches[:, patch[:, None], patch]

    @cached_property
    def features(self) -> npt.NDArray[np.float32]:
        """The features of the test images, computed in float32."""
        return compile_network(self.frozen.build(), self.size, "float32")(self.images)

    @cached_property
    def model(self) -> keras.Model:
        """A whole model with a linear head, from images of any size to three classes."""
        head = registry.head("linear")
        return assemble(self.frozen, trained_part(self.frozen, self.plugin.cuts[-1], head, 3))

    def probe(self) -> keras.Model:
        """A model from pixels to the outputs by cut, not frozen and with the original weights."""
        import keras

        network = self.networks[self.size]
        for layer in network.layers:  # `FrozenPart.build` freezes the layers, which it shares.
            layer.trainable = True
        network.set_weights(self.arrays)
        pixels = keras.Input((self.size, self.size, 3))
        cuts = {cut: network.get_layer(cut).output for cut in self.plugin.cuts}
        return keras.Model(pixels, keras.Model(network.inputs, cuts)(self.plugin.preprocess(pixels)))

    def first_difference(self, actual: dict[str, Any], expected: dict[str, Any]) -> str:
        """The first cut at which two outputs of `probe` differ; empty if none does."""
        cuts = self.plugin.cuts
        return next((cut for cut in cuts if relative_error(actual[cut], expected[cut]) > TOLERANCE), "")
