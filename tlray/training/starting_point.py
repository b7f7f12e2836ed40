"""The starting point of a training: a network, the cut in it, a head, and the weights of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tlray.core.config import FinetuneConfig, NetworkConfig, TrainConfig
from tlray.core.errors import UserError
from tlray.core.runtime import prepare_keras
from tlray.core.settings import option
from tlray.core.storage import StrPath
from tlray.features.feature_set import FeatureSet
from tlray.models import registry
from tlray.models.compiled import chosen_precision
from tlray.models.frozen import DEFAULT, FrozenPart
from tlray.models.interfaces import Head
from tlray.models.layers import INPUT, Arrays, backbone_arrays, cut_before, layers_up_to
from tlray.models.model import Model
from tlray.models.provenance import Provenance
from tlray.models.weights import digest

_LEARNING_RATE = 1e-5
"""For layers that are already trained, as published: larger steps would destroy what they have learned."""
_NETWORK = dict.fromkeys(("backbone", "weights", "image_size", "preprocess"))
_FORMATS = {"precision": "auto", "store": "float32"}
"""Settings that must fit a given model or feature set, and their defaults, which fit any."""


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """The network and the head that a training starts from."""

    frozen: FrozenPart
    """The frozen part, with the weights of the whole network."""
    end: str
    """The layer of the backbone whose output the head takes."""
    head: Head
    head_weights: Arrays | None = None
    """The weights of the head; None for new ones."""
    model: Model | None = None

    @classmethod
    def decide(
        cls, config: FinetuneConfig, model: StrPath | None, features: FeatureSet | None
    ) -> StartingPoint:
        """Find the network, its cut and its head; `features` is the feature set to train on, if it is one."""
        prepare_keras(gpu=False)
        if model is not None:
            starting_point = _trained(config, Model.open(model))
        elif config.head is None:
            raise UserError("--model is missing: give a model to start from, or --head for a new head")
        elif features is not None:
            starting_point = _from_features(config, config.head, features)
        else:
            starting_point = _new(config, config.head)
        if config.from_ is not None and not starting_point.trains_backbone:
            raise UserError(
                f"--from {config.from_}: the network ends at {starting_point.end}, before that layer, so "
                "only the head could be trained; name an earlier layer, or give a model with a later end"
            )
        return starting_point if features is None else starting_point._on(features, config)

    @property
    def trains_backbone(self) -> bool:
        return self.end != self.frozen.provenance.cut

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The earlier trainings of the model, the oldest first."""
        return list(self.model.manifest.stages) if self.model else []

    @property
    def classes(self) -> list[str] | None:
        """The classes of a trained head, in the order of its output; None for a new head."""
        return self.model.classes if self.model and self.head_weights is not None else None

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that tell this starting point from any other."""
        origin = self.model.identity if self.model else {}
        return {**origin, "provenance": self.frozen.provenance.identity()}

    def first_trained(self, config: FinetuneConfig) -> str | None:
        """Return the first layer of the backbone that is trained; None if only the head is trained."""
        if config.from_ is not None or not self.trains_backbone:
            return config.from_
        before: str = self.stages[-1]["from"]
        return before

    def learning_rate(self, config: TrainConfig) -> float:
        """Return the learning rate of the first step."""
        is_pretrained = self.frozen.provenance.weights != "none" or any(
            stage["from"] for stage in self.stages
        )
        is_small = self.trains_backbone and is_pretrained
        return config.learning_rate or (_LEARNING_RATE if is_small else self.head.learning_rate)

    def _on(self, features: FeatureSet, config: FinetuneConfig) -> StartingPoint:
        """Return the starting point with the precision of a feature set, whose provenance must fit."""
        stored = features.provenance
        _check_settings(config, stored, features.folder.uri, _FORMATS)
        needed = replace(self.frozen.provenance, precision=stored.precision, store=stored.store)
        if differences := stored.differences(needed):
            raise UserError(
                f"{features.folder.uri} was not made as this training needs ({'; '.join(differences)}): "
                f"extract with --cut {needed.cut} and otherwise the same options, or give the images"
            )
        return replace(self, frozen=replace(self.frozen, provenance=needed))


def _new(config: FinetuneConfig, head: str) -> StartingPoint:
    backbone = registry.backbone(config.backbone or DEFAULT)
    cut = cut_before(backbone, config.from_) if config.from_ else None
    options = {name: getattr(config, name) for name in (*_NETWORK, *_FORMATS)}
    frozen = FrozenPart.decide(NetworkConfig(**options, cut=cut), seed=config.seed)
    return StartingPoint(frozen=frozen, end=backbone.cuts[-1], head=registry.head(head))


def _from_features(config: FinetuneConfig, head: str, features: FeatureSet) -> StartingPoint:
    frozen = FrozenPart.of(features.provenance)
    _check_settings(config, features.provenance, features.folder.uri, _NETWORK)
    cut = cut_before(frozen.backbone, config.from_) if config.from_ else features.provenance.cut
    frozen = replace(frozen, provenance=replace(frozen.provenance, cut=cut))
    # Without --from only the head is trained, wherever the cut is.
    end = frozen.backbone.cuts[-1] if config.from_ else cut
    return StartingPoint(frozen=frozen, end=end, head=registry.head(head))


def _trained(config: FinetuneConfig, model: Model) -> StartingPoint:
    provenance = model.provenance
    _check_settings(config, provenance, model.folder.uri, _NETWORK)
    backbone = registry.backbone(provenance.backbone)
    whole, end = model.load(), model.manifest.end
    arrays = backbone_arrays(whole, backbone, provenance.image_size, end)
    trained_cut = provenance.cut
    provenance = replace(
        provenance,
        cut=cut_before(backbone, config.from_) if config.from_ else trained_cut,
        precision=chosen_precision(backbone, config.precision),
        store=config.store,
    )
    if provenance.cut != INPUT and provenance.cut not in layers_up_to(backbone, trained_cut):
        # The frozen part now has layers that were trained before, so its weights are those of the model.
        provenance = replace(provenance, weights=model.folder.uri, weights_sha256=digest(arrays))
    classifier = whole.get_layer("head").get_layer("classifier")
    return StartingPoint(
        frozen=FrozenPart(backbone, arrays, provenance),
        end=end,
        head=registry.head(config.head or model.manifest.head),
        head_weights=None if config.head else classifier.get_weights(),
        model=model,
    )


def _check_settings(
    config: FinetuneConfig, provenance: Provenance, where: str, defaults: Mapping[str, str | None]
) -> None:
    """Raise UserError if a setting is neither its default nor what a model or a feature set was made with."""
    for name, default in defaults.items():
        asked, actual = getattr(config, name), getattr(provenance, name)
        if asked not in (default, actual):
            raise UserError(
                f"{option(name)} {asked}: {where} was made with {actual}; leave out the option, "
                "or choose another model or feature set"
            )
