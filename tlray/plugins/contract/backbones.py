"""What a backbone is checked for."""

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
    CLOSE,
    Check,
    Failed,
    NotHere,
    difference,
    exported,
    foreign_layers,
    line,
    loads,
    must,
    offline,
    saved,
    trying,
)
from tlray.plugins.contract.subject import BackboneSubject, listed

_REDUCED = 0.1
"""Relative error that bfloat16 may have."""


def declares(subject: BackboneSubject) -> None:
    """Default and smallest size, cuts, and the digest of each of its weights are what they have to be."""
    plugin = subject.plugin
    for name in ("image_size", "minimum_size"):
        value = getattr(plugin, name)
        must(isinstance(value, int) and value > 0, f"{name} is {value!r}, expected a number of pixels")
    must(
        plugin.minimum_size <= plugin.image_size,
        f"minimum_size {plugin.minimum_size} is larger than image_size {plugin.image_size}",
    )
    cuts = plugin.cuts
    must(len(set(cuts)) == len(cuts), f"cuts names a layer twice: {', '.join(cuts)}")
    for name, known in plugin.weights.items():
        must(
            isinstance(known, KnownWeights)
            and (
                re.fullmatch("[0-9a-f]{64}", known.sha256)
                or re.fullmatch("([0-9a-f]{32}){1,2}", known.file_hash)
            ),
            f"weights[{name!r}] is {known!r}, expected KnownWeights(sha256=...) with 64 hexadecimal digits, "
            "or file_hash with as many, or with 32",
        )


def builds(subject: BackboneSubject) -> None:
    """It builds without weights and without network access, at its default and its smallest size, from
    (batch, size, size, 3), and its weights have the same shapes at both.
    """
    plugin = subject.plugin
    for size, network in subject.networks.items():
        expected = (None, size, size, 3)
        must(
            network.input_shape == expected,
            f"build({size}) takes {network.input_shape}, expected one input of {expected}",
        )
        shape = network.output_shape
        must(isinstance(shape, tuple), f"build({size}) has several outputs, {shape}; expected one")
        must(
            len(shape) > 1 and None not in shape[1:] and 0 not in shape,
            f"build({size}) gives features of shape {shape}, expected (batch, ...) with fixed, positive sides"
            + (f"; raise minimum_size, {plugin.minimum_size}" if 0 in shape else ""),
        )
    large, *others = [[one.shape for one in network.get_weights()] for network in subject.networks.values()]
    must(
        all(other == large for other in others),
        f"the shapes of its weights depend on the image size: say minimum_size = {plugin.image_size}, "
        "the size it is made for",
    )


def preprocesses(subject: BackboneSubject) -> None:
    """The preprocessing is a part of the graph, from RGB pixels 0 to 255 to what the network takes."""
    import keras

    pixels = keras.Input((subject.size, subject.size, 3))
    try:
        output = subject.plugin.preprocess(pixels)
        symbolic = isinstance(output, keras.KerasTensor)
    except Exception as error:
        raise Failed(
            f"preprocess failed on the symbolic tensor it is given ({type(error).__name__}: {line(error)}): "
            "it must be made of Keras' layers and keras.ops, not of Python and NumPy"
        ) from error
    must(
        symbolic,
        f"preprocess returned a {type(output).__name__}, expected the symbolic tensor that Keras' layers "
        "and keras.ops make of its argument",
    )
    expected = (None, subject.size, subject.size, 3)
    must(
        output.shape == expected,
        f"preprocess returned the shape {output.shape}, but the network takes {expected}",
    )
    try:
        keras.Model(pixels, output)
    except ValueError as error:
        raise Failed(f"what preprocess returns does not come from its argument: {line(error)}") from error


def names_layers(subject: BackboneSubject) -> None:
    """Its cuts, and its layers with weights, have the same names every time it is built, at every size."""
    network = subject.networks[subject.size]
    others = [other for other in subject.networks.values() if other is not network]
    again = others[0] if others else subject.build(subject.size)
    first, second = (
        [x.name for x in one.layers if x.weights or x.name in subject.plugin.cuts] for one in (again, network)
    )
    must(
        len(first) == len(second), f"it has layers at one time that it has not at another: {first}, {second}"
    )
    for name, other in zip(first, second, strict=True):
        must(
            name == other,
            f"the layer {name} is called {other} when it is built again: give every layer a name=",
        )


def has_cuts(subject: BackboneSubject) -> None:
    """Its cuts are layers, from the input to the end, and the last one is the end."""
    cuts, network = subject.plugin.cuts, subject.networks[subject.size]
    layers = [layer.name for layer in network.layers]
    for cut in cuts:
        if cut not in layers:
            raise Failed(f"cuts names a layer that is not there: {unknown('layer', cut, layers)}")
    order = sorted(cuts, key=layers.index)
    must(list(cuts) == order, f"cuts are not in the order of the network, which is {', '.join(order)}")
    must(
        network.get_layer(cuts[-1]).output is network.outputs[0],
        f"the last cut, {cuts[-1]}, is not the end of the network, {layers[-1]}: name that as the last cut, "
        "or end the network there",
    )


def rejoins(subject: BackboneSubject) -> None:
    """Cut at each of its cuts and joined again, it is the whole network."""
    frozen = subject.frozen
    whole = frozen.build()
    expected = whole(subject.images, training=False)
    for cut in subject.plugin.cuts[:-1]:
        part = replace(frozen, provenance=replace(frozen.provenance, cut=cut))
        try:
            tail = part.build_tail(subject.plugin.cuts[-1])
        except UserError as error:
            raise Failed(
                f"it cannot be split at the cut {cut}: other paths lead around it; leave it out of cuts"
            ) from error
        assert tail is not None
        found = tail(part.build()(subject.images, training=False), training=False)
        off = difference(found, expected)
        must(off < CLOSE, f"cut at {cut} and joined again it differs: relative error {off:.2g}")


def sees(subject: BackboneSubject) -> None:
    """From uint8 images it makes features that are finite numbers, and others for other images."""
    features = subject.features
    must(np.isfinite(features).all(), "some features are infinite or no numbers")
    must(
        np.ptp(features, axis=0).max() > 0,
        "the features of all images are the same: does the preprocessing keep the pixels?",
    )


def repeats(subject: BackboneSubject) -> None:
    """In inference the same image has the same features, every time and in every batch; also where Keras
    is not told that it is inference, as in an exported model.
    """
    probe, images = subject.probe(), subject.images
    for options in ({"training": False}, {}):
        once, again, alone = (probe(rows, **options) for rows in (images, images, images[:1]))
        cut = subject.first(once, again)
        must(
            not cut,
            f"the same images have other features in a second run, from the cut {cut} on: a layer draws "
            "random numbers in inference too; do not call it with training=True",
        )
        cut = subject.first([part[:1] for part in listed(once)], alone)
        must(
            not cut,
            f"the features of an image depend on the others in its batch, from the cut {cut} on: a layer "
            "takes statistics of the batch in inference too; do not call it with training=True",
        )


def stays(subject: BackboneSubject) -> None:
    """Neither inference nor, once it is frozen, training moves any of its weights or moving statistics."""
    probe = subject.probe()
    names = [variable.path for variable in probe.weights]

    def still(when: str, hint: str) -> None:
        moved = [
            name
            for name, array, before in zip(names, probe.get_weights(), subject.arrays, strict=True)
            if not np.array_equal(array, before)
        ]
        must(not moved, f"{', '.join(moved[:3])} moved in {when}: {hint}")

    try:
        probe(subject.images)
        still("inference", "do not call batch normalisation, or any other layer, with training=True")
        frozen = subject.frozen.build()
        must(not frozen.trainable_variables, "some of its variables train though it is frozen")
        frozen(subject.images, training=True)
        still("training though it is frozen", "use layers that heed trainable = False")
    finally:
        subject.networks[subject.size].set_weights(subject.arrays)


def reduces(subject: BackboneSubject) -> None:
    """Computed in bfloat16, the features differ from those in float32 by less than a tenth, unless it says
    that reduced precision does it no good.
    """
    if not subject.plugin.reduced_precision:
        raise NotHere("it says reduced_precision = False")
    fresh = FrozenPart(subject.plugin, subject.arrays, subject.frozen.provenance).build()
    with trying("it does not run in bfloat16"):
        found = compile_network(fresh, subject.size, "bfloat16")(subject.images)
    error = difference(found, subject.features)
    must(
        error < _REDUCED, f"features in bfloat16 have a relative error of {error:.2g}, allowed is {_REDUCED}"
    )


def saves(subject: BackboneSubject) -> None:
    """A model with it is saved, and loads in Keras' safe mode without the plugin, as it was."""
    if foreign := foreign_layers(subject.frozen.build()):
        raise Failed(
            f"it has layers of its own, {', '.join(foreign)}: a model with it would not load without this "
            "package; use Keras' own layers and keras.ops"
        )
    saved(subject.model, subject.images)


def exports(subject: BackboneSubject) -> None:
    """A model with it exports as a SavedModel that gives the same numbers."""
    exported(subject.model, subject.images)


def knows_weights(subject: BackboneSubject) -> None:
    """Those of its weights that are here without a download have the SHA-256 it says, and fit."""
    backbone = subject.plugin
    if not backbone.weights:
        raise NotHere("it knows no weights: training starts from random ones")
    here = weights.weights_here(backbone)
    for name in here:
        try:
            with offline():
                found = weights.resolve(backbone, name, registry.weights_providers())
        except UserError as error:
            raise Failed(str(error)) from error
        shapes = [one.shape for one in subject.networks[subject.size].get_weights()]
        must(
            [np.shape(one) for one in found.arrays] == shapes,
            f"the {name!r} weights do not fit: {len(found.arrays)} arrays, the network has {len(shapes)}, "
            "or they have other shapes",
        )
    if missing := [name for name in backbone.weights if name not in here]:
        raise NotHere(f"not here: {', '.join(missing)}; here, and right: {', '.join(here) or 'none'}")


def works_elsewhere(subject: BackboneSubject) -> None:
    """In a Ray actor, in a fresh process, it gives the same features."""
    frozen = FrozenPart(subject.plugin, subject.arrays, subject.frozen.provenance)
    found = subject.elsewhere.call(_features, frozen, subject.images)
    error = difference(found, subject.features)
    must(
        error < CLOSE,
        f"in an actor it gives other features, relative error {error:.2g}: does it "
        "draw random numbers when it is built, or read something of this process?",
    )


def _features(frozen: FrozenPart, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    prepare_keras(gpu=False)
    return compile_network(frozen.build(), frozen.provenance.image_size, "float32")(images)


CHECKS = (
    *(Check(check, vital=True) for check in (loads, declares, builds, preprocesses, has_cuts)),
    *map(Check, (names_layers, rejoins, sees, repeats, stays, reduces)),
    *map(Check, (saves, exports, knows_weights, works_elsewhere)),
)
