"""The backbone that is checked: built, with weights, and as a frozen part and a whole model."""

from __future__ import annotations

from collections.abc import Iterator
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
from tlray.plugins.contract.check import CLOSE, Failed, Subject, difference, line, offline, trying

if TYPE_CHECKING:
    import keras

_SMALL = 16
"""Images are as small as the backbone allows, but not smaller than this, in pixels."""


@dataclass(frozen=True)
class _Built(FrozenPart):
    """A frozen part whose network is built once, and shared."""

    built: keras.Model

    def network(self) -> keras.Model:
        return self.built


class BackboneSubject(Subject[Backbone]):
    """A backbone, built once at its default size and once as small as it allows."""

    kind = "backbones"

    @cached_property
    def size(self) -> int:
        """Side of the images that it is checked with."""
        return max(self.plugin.minimum_size, min(self.plugin.image_size, _SMALL))

    @cached_property
    def networks(self) -> dict[int, keras.Model]:
        """By size: the default one, the smallest, and that of the checks."""
        prepare_keras(gpu=False)
        import keras

        keras.utils.set_random_seed(0)
        sizes = {self.plugin.image_size, self.size, self.plugin.minimum_size}
        return {size: self.build(size) for size in sorted(sizes, reverse=True)}

    def build(self, size: int) -> keras.Model:
        try:
            with offline():
                return self.plugin.build(size)
        except OSError as error:
            raise Failed(
                f"build({size}) reached for a file or the network ({line(error)}): it must build without "
                "weights; those with a name are found by tlray"
            ) from error
        except (Exception, SystemExit) as error:
            raise Failed(
                f"build({size}) failed: {type(error).__name__}: {line(error)}"
                + "; if it takes no images so small, raise minimum_size" * (size < self.plugin.image_size)
            ) from error

    @cached_property
    def arrays(self) -> Arrays:
        """Those of the first weights that are here, or random ones."""
        for name in weights.weights_here(self.plugin):
            with suppress(UserError), offline():
                return weights.resolve(self.plugin, name, registry.weights_providers()).arrays
        # A new batch normalisation does nothing: scale each channel a little.
        rng, arrays = np.random.default_rng(0), self.networks[self.size].get_weights()
        return [
            one * rng.uniform(0.9, 1.1, one.shape).astype("f4") if one.ndim == 1 else one for one in arrays
        ]

    @cached_property
    def frozen(self) -> _Built:
        """The whole network with weights, as the frozen part."""
        network, found = self.networks[self.size], registry.find(self.kind, self.name)
        with trying("its weights do not fit"):
            network.set_weights(self.arrays)
        made = Provenance(
            backbone=self.name,
            package=f"{found.package} {found.version}",
            weights="none",
            weights_sha256=weights.digest(self.arrays),
            cut=self.plugin.cuts[-1],
            preprocess="imagenet",
            image_size=self.size,
            precision="float32",
            store="float32",
        )
        return _Built(self.plugin, self.arrays, made, network)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """Patches of colours, 4 by 4 in each image, (8, size, size, 3)."""
        patches = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
        where = np.arange(self.size) * 4 // self.size
        return patches[:, where[:, None], where]

    @cached_property
    def features(self) -> npt.NDArray[np.float32]:
        """Of the images, in float32."""
        return compile_network(self.frozen.build(), self.size, "float32")(self.images)

    @cached_property
    def model(self) -> keras.Model:
        """A whole model, from images of any size to the probabilities of three classes."""
        head = registry.head("linear")
        return assemble(self.frozen, trained_part(self.frozen, self.plugin.cuts[-1], head, 3))

    def probe(self) -> keras.Model:
        """From pixels to the outputs of all cuts; nothing is frozen, and the weights are as at first."""
        import keras

        network = self.networks[self.size]
        for layer in network.layers:  # The network itself never was frozen, only its layers, in another one.
            layer.trainable = True
        network.set_weights(self.arrays)
        pixels = keras.Input((self.size, self.size, 3))
        cuts = [network.get_layer(cut).output for cut in self.plugin.cuts]
        return keras.Model(pixels, keras.Model(network.inputs, cuts)(self.plugin.preprocess(pixels)))

    def first(self, one: Any, other: Any) -> str:
        """The first cut at which two outputs of the probe differ; empty if none does."""
        outputs = zip(self.plugin.cuts, listed(one), listed(other), strict=True)
        return next((cut for cut, found, expected in outputs if difference(found, expected) > CLOSE), "")


def listed(outputs: Any) -> Iterator[Any]:
    """The outputs of a model, that has one or several."""
    return iter(outputs if isinstance(outputs, (list, tuple)) else [outputs])
