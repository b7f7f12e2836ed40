"""Where fine-tuning starts: a network, the cut in it, a head, and the weights of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tlray import plugins
from tlray.backbone import Backbone
from tlray.config import FinetuneConfig, NetworkConfig, option
from tlray.errors import UserError
from tlray.featureset import FeatureSet
from tlray.head import Head
from tlray.model import NETWORK, Model, load
from tlray.network import (
    DEFAULT,
    INPUT,
    FrozenPart,
    backbone_arrays,
    cut_before,
    fastest_precision,
)
from tlray.runtime import prepare_keras
from tlray.weights import Arrays, digest

if TYPE_CHECKING:
    import keras

_LEARNING_RATE = 1e-5
"""For layers that are trained already, as published: larger steps would destroy what they know."""
_NETWORK = ("backbone", "weights", "image_size", "preprocess")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a fine-tuning starts from; nothing of the images is known yet."""

    frozen: FrozenPart
    """With the weights of the whole network."""
    end: str
    """The layer that the head follows on."""
    feature_shape: tuple[int, ...]
    """Of what comes out of the cut."""
    head: Head
    start: Arrays | None
    """The weights of the head; None: new ones."""
    classes: list[str] | None
    """Of the head, if it is a trained one."""
    stages: list[Mapping[str, Any]]
    """Of the model's training before."""
    identity: Mapping[str, Any]
    """JSON values that identify it."""

    @classmethod
    def decide(cls, config: FinetuneConfig, model: str | None) -> Origin:
        """Find the network, its cut and the head.

        Raises:
            UserError: settings and model contradict each other, or a plugin, layer, or weights are missing.
        """
        prepare_keras()
        found = _new(config) if model is None else _trained(config, Model.open(model))
        tail = found.frozen.build_tail(found.end)
        if tail is not None:
            return replace(found, feature_shape=tuple(tail.input_shape[1:]))
        return replace(found, feature_shape=tuple(found.frozen.build().output_shape[1:]))

    @property
    def trains_backbone(self) -> bool:
        return self.end != self.frozen.provenance.cut

    def learning_rate(self, config: FinetuneConfig) -> float:
        """The first step size."""
        tuning = self.trains_backbone and self.frozen.provenance.weights != "none"
        return config.learning_rate or (_LEARNING_RATE if tuning else self.head.learning_rate)

    def on(self, features: FeatureSet) -> Origin:
        """The same, with the precision in which these features are there.

        Raises:
            UserError: they are of another network, or of another cut.
        """
        own, theirs = self.frozen.provenance, features.provenance
        own = replace(own, precision=theirs.precision, store=theirs.store)
        if differences := theirs.differences(own):
            raise UserError(
                f"{features.folder.uri} is of another provenance than is needed ({'; '.join(differences)}): "
                f"extract with --cut {own.cut} as for the model, or give the images"
            )
        return replace(self, frozen=replace(self.frozen, provenance=own))


def _new(config: FinetuneConfig) -> Origin:
    if config.head is None:
        raise UserError("--model is missing: give a model to start from, or --head for a new one")
    backbone = plugins.backbone(config.backbone or DEFAULT)
    cut = cut_before(backbone, config.from_) if config.from_ else None
    options = {name: getattr(config, name) for name in (*_NETWORK, "precision", "store")}
    frozen = FrozenPart.decide(NetworkConfig(**options, cut=cut))
    return Origin(
        frozen=frozen,
        end=backbone.cuts[-1],
        feature_shape=(),
        head=plugins.head(config.head),
        start=None,
        classes=None,
        stages=[],
        identity={"provenance": frozen.provenance.identity()},
    )


def _trained(config: FinetuneConfig, model: Model) -> Origin:
    made = model.provenance
    for name in _NETWORK:
        asked, there = getattr(config, name), getattr(made, name)
        if asked is not None and asked != there:
            raise UserError(
                f"{option(name)} {asked}: {model.folder.uri} was made with {there}; leave the option away, "
                "or start from another model"
            )
    backbone = plugins.backbone(made.backbone)
    whole = load(model.folder.read(NETWORK))
    arrays = backbone_arrays(whole, backbone, made.image_size)
    cut = cut_before(backbone, config.from_) if config.from_ else made.cut
    provenance = replace(
        made,
        cut=cut,
        precision=fastest_precision() if config.precision == "auto" else config.precision,
        store=config.store,
    )
    if cut != INPUT and cut not in _frozen_layers(backbone, made.cut):
        # Some of what is frozen now was trained before.
        provenance = replace(provenance, weights=model.folder.uri, weights_sha256=digest(arrays))
    classifier = whole.get_layer("head").get_layer("classifier")
    return Origin(
        frozen=FrozenPart(backbone, arrays, provenance),
        end=model.manifest["end"],
        feature_shape=(),
        head=plugins.head(config.head or model.manifest["head"]),
        start=None if config.head else classifier.get_weights(),
        classes=None if config.head else model.classes,
        stages=list(model.manifest["stages"]),
        identity={"model": model.folder.uri, "model_created": model.manifest["created"]},
    )


def _frozen_layers(backbone: Backbone, cut: str) -> set[str]:
    """The names of the layers up to a cut."""
    import keras

    if cut == INPUT:
        return set()
    whole: keras.Model = backbone.build(backbone.image_size)
    return {layer.name for layer in keras.Model(whole.inputs, whole.get_layer(cut).output).layers}
