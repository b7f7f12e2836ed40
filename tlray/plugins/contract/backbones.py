"""The contract of backbones."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tlray.core.errors import UserError, unknown
from tlray.core.runtime import prepare_keras
from tlray.models import registry, weights
from tlray.models.compiled import compile_network
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import KnownWeights
from tlray.plugins.contract.check import (
    Check,
    Failed,
    Skipped,
    check_export,
    check_saving,
    explain,
    loads,
    offline,
    require,
    require_equal,
)
from tlray.plugins.contract.subject import BackboneSubject


def declares(subject: BackboneSubject) -> None:
    """`image_size`, `minimum_size`, `cuts` and the digests in `weights` have valid values."""
    plugin = subject.plugin
    for name in ("image_size", "minimum_size"):
        value = getattr(plugin, name)
        require(isinstance(value, int) and value > 0, f"{name} is {value!r}, expected a number of pixels")
    require(
        plugin.minimum_size <= plugin.image_size,
        f"minimum_size {plugin.minimum_size} is larger than image_size {plugin.image_size}",
    )
    cuts = plugin.cuts
    require(len(set(cuts)) == len(cuts), f"cuts lists a layer twice: {', '.join(cuts)}")
    for name, known in plugin.weights.items():
        require(
            isinstance(known, KnownWeights)
            and (
                re.fullmatch("[0-9a-f]{64}", known.sha256)
                or re.fullmatch("([0-9a-f]{32}){1,2}", known.file_hash)
            ),
            f"weights[{name!r}] is {known!r}, expected KnownWeights with a sha256 of 64 hexadecimal digits, "
            "or a file_hash of 32 or 64",
        )


def builds(subject: BackboneSubject) -> None:
    """`build` needs no files and no network access. At the default and at the smallest image size, the
    network takes (batch, size, size, 3), and its weights have the same shapes.
    """
    plugin = subject.plugin
    for size, network in subject.networks.items():
        expected = (None, size, size, 3)
        require(
            network.input_shape == expected,
            f"build({size}) takes {network.input_shape}, expected one input of {expected}",
        )
        shape = network.output_shape
        require(isinstance(shape, tuple), f"build({size}) has several outputs, {shape}, expected one")
        require(
            len(shape) > 1 and None not in shape[1:] and 0 not in shape,
            f"build({size}) gives features of shape {shape}, expected (batch, ...) with fixed, positive sizes"
            + (f"; raise minimum_size above {plugin.minimum_size}" if 0 in shape else ""),
        )
    shapes = [[array.shape for array in network.get_weights()] for network in subject.networks.values()]
    require(
        all(other == shapes[0] for other in shapes),
        f"the shapes of the weights depend on the image size: set minimum_size = {plugin.image_size}, "
        "the default size",
    )


def preprocesses(subject: BackboneSubject) -> None:
    """`preprocess` turns RGB pixels, 0 to 255, into the network's input, with Keras operations only."""
    import keras

    pixels = keras.Input((subject.size, subject.size, 3))
    with explain("preprocess failed on a symbolic tensor (use Keras' layers and keras.ops, not NumPy)"):
        output = subject.plugin.preprocess(pixels)
    require(
        isinstance(output, keras.KerasTensor),
        f"preprocess returned a {type(output).__name__}, expected a symbolic tensor: "
        "apply Keras' layers and keras.ops to its argument",
    )
    expected = (None, subject.size, subject.size, 3)
    require(
        output.shape == expected,
        f"preprocess returned the shape {output.shape}, but the network takes {expected}",
    )
    with explain("preprocess does not use its argument"):
        keras.Model(pixels, output)


def names_layers(subject: BackboneSubject) -> None:
    """Every call of `build`, for any size, gives the cuts and the layers with weights the same names."""
    network = subject.networks[subject.size]
    others = (other for other in subject.networks.values() if other is not network)
    rebuilt = next(others, None) or subject.build(subject.size)
    first, second = (
        [layer.name for layer in built.layers if layer.weights or layer.name in subject.plugin.cuts]
        for built in (rebuilt, network)
    )
    require(len(first) == len(second), f"two calls of build gave different layers: {first} and {second}")
    for name, other in zip(first, second, strict=True):
        require(name == other, f"the layer {name} is called {other} in another build: give it a name=")


def has_cuts(subject: BackboneSubject) -> None:
    """`cuts` lists layers in order from the input to the output, and the last one is the output layer."""
    cuts, network = subject.plugin.cuts, subject.networks[subject.size]
    layers = [layer.name for layer in network.layers]
    for cut in cuts:
        if cut not in layers:
            raise Failed(f"cuts lists a layer that does not exist: {unknown('layer', cut, layers)}")
    order = sorted(cuts, key=layers.index)
    require(list(cuts) == order, f"cuts are not in the order of the network: write {', '.join(order)}")
    require(
        network.get_layer(cuts[-1]).output is network.outputs[0],
        f"the last cut is {cuts[-1]}, but the output layer is {layers[-1]}: append {layers[-1]} to cuts, "
        f"or end the network at {cuts[-1]}",
    )


def rejoins(subject: BackboneSubject) -> None:
    """Cut in two at any of its cuts and joined again, the network gives the same output."""
    frozen = subject.frozen
    whole = frozen.build()
    expected = whole(subject.images, training=False)
    for cut in subject.plugin.cuts[:-1]:
        part = replace(frozen, provenance=replace(frozen.provenance, cut=cut))
        try:
            tail = part.build_tail(subject.plugin.cuts[-1])
        except UserError as error:
            raise Failed(
                f"the network cannot be split at {cut}: later layers use earlier ones; remove it from cuts"
            ) from error
        assert tail is not None
        output = tail(part.build()(subject.images, training=False), training=False)
        require_equal(output, expected, f"the output differs if the network is cut at {cut} and joined")


def distinguishes(subject: BackboneSubject) -> None:
    """The features of uint8 images are finite, and different images have different features."""
    features = subject.features
    require(np.isfinite(features).all(), "some features are infinite or NaN")
    require(
        np.ptp(features, axis=0).max() > 0,
        "all images have the same features: check that preprocess passes the pixels on",
    )


def repeats(subject: BackboneSubject) -> None:
    """In inference an image has the same features in every call and every batch, also if Keras is called
    without `training=False`, as in an exported model.
    """
    probe, images = subject.probe(), subject.images
    for options in ({"training": False}, {}):
        first, second, single = (probe(rows, **options) for rows in (images, images, images[:1]))
        cut = subject.first_difference(first, second)
        require(
            not cut,
            f"the same images have other features in a second run, from the cut {cut} on: a layer draws "
            "random numbers in inference; do not call it with training=True",
        )
        cut = subject.first_difference({name: output[:1] for name, output in first.items()}, single)
        require(
            not cut,
            f"the features of an image depend on the other images in the batch, from the cut {cut} on: a "
            "layer uses statistics of the batch in inference; do not call it with training=True",
        )


def keeps_weights(subject: BackboneSubject) -> None:
    """Weights and moving statistics stay the same in inference, and in training if the backbone is frozen."""
    probe = subject.probe()
    names = [variable.path for variable in probe.weights]

    def require_unchanged(phase: str, hint: str) -> None:
        changed = [
            name
            for name, array, original in zip(names, probe.get_weights(), subject.arrays, strict=True)
            if not np.array_equal(array, original)
        ]
        require(not changed, f"{', '.join(changed[:3])} changed in {phase}: {hint}")

    try:
        probe(subject.images)
        require_unchanged("inference", "call no layer, such as batch normalisation, with training=True")
        frozen = subject.frozen.build()
        require(
            not frozen.trainable_variables, "some variables stay trainable although the backbone is frozen"
        )
        frozen(subject.images, training=True)
        require_unchanged("training although it is frozen", "use layers that respect trainable = False")
    finally:
        subject.networks[subject.size].set_weights(subject.arrays)


def runs_in_bfloat16(subject: BackboneSubject) -> None:
    """In bfloat16 the features have a relative error below 0.1. Skipped if `reduced_precision` is False."""
    if not subject.plugin.reduced_precision:
        raise Skipped("the backbone sets reduced_precision = False")
    fresh = FrozenPart(subject.plugin, subject.arrays, subject.frozen.provenance).build()
    with explain("the network does not run in bfloat16"):
        features = compile_network(fresh, subject.size, "bfloat16")(subject.images)
    message = "features in bfloat16 are too inaccurate: set reduced_precision = False"
    require_equal(features, subject.features, message, tolerance=0.1)


def saves(subject: BackboneSubject) -> None:
    """A saved model with this backbone loads in Keras' safe mode, without the plugin, and is the same."""
    check_saving(subject.model, subject.images)


def exports(subject: BackboneSubject) -> None:
    """A model with this backbone, exported as a SavedModel, gives the same output."""
    check_export(subject.model, subject.images)


def matches_digests(subject: BackboneSubject) -> None:
    """The pretrained weights that need no download have the declared digest and fit the network."""
    backbone = subject.plugin
    if not backbone.weights:
        raise Skipped("the backbone declares no pretrained weights")
    available = weights.weights_here(backbone)
    for name in available:
        with offline():
            arrays = weights.resolve(backbone, name, registry.weights_providers()).arrays
        shapes = [array.shape for array in subject.networks[subject.size].get_weights()]
        require(
            [np.shape(array) for array in arrays] == shapes,
            f"the {name!r} weights do not fit: they have {len(arrays)} arrays and the network "
            f"{len(shapes)}, or the shapes differ",
        )
    if missing := [name for name in backbone.weights if name not in available]:
        raise Skipped(f"not here: {', '.join(missing)}; verified: {', '.join(available) or 'none'}")


def works_in_actor(subject: BackboneSubject) -> None:
    """In a Ray actor, which is a fresh process, the backbone computes the same features."""
    frozen = FrozenPart(subject.plugin, subject.arrays, subject.frozen.provenance)
    require_equal(
        subject.fresh_process.call(_features, frozen, subject.images),
        subject.features,
        "the features differ in a Ray actor: build and preprocess must not draw random numbers or depend on "
        "the process",
    )


def _features(frozen: FrozenPart, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    prepare_keras(gpu=False)
    return compile_network(frozen.build(), frozen.provenance.image_size, "float32")(images)


CHECKS = (
    *(Check(check, vital=True) for check in (loads, declares, builds, preprocesses, has_cuts)),
    *map(Check, (names_layers, rejoins, distinguishes, repeats, keeps_weights, runs_in_bfloat16)),
    *map(Check, (saves, exports, matches_digests, works_in_actor)),
)
