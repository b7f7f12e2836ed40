"""Where fine-tuning starts: a network, the cut in it, a head, and the weights of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tlray.core.config import FinetuneConfig, NetworkConfig
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
"""For layers that are trained already, as published: larger steps would destroy what they know."""
_NETWORK = ("backbone", "weights", "image_size", "preprocess")


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """What a fine-tuning starts from; nothing of the images is known yet."""

    frozen: FrozenPart
    """With the weights of the whole network."""
    end: str
    """The layer that the head follows on."""
    head: Head
    start: Arrays | None = None
    """The weights of the head; None: new ones."""
    model: Model | None = None

    @classmethod
    def decide(
        cls, config: FinetuneConfig, model: StrPath | None, features: FeatureSet | None
    ) -> StartingPoint:
        """Find the network, its cut and the head.

        Args:
            config: settings.
            model: to start from, if any.
            features: the feature set that will be trained on, if it is one.

        Raises:
            UserError: settings, model and features contradict each other, or a plugin, layer, or weights
                are missing.
        """
        prepare_keras(gpu=False)
        if model is not None:
            found = _trained(config, Model.open(model))
        elif config.head is None:
            raise UserError("--model is missing: give a model to start from, or --head for a new one")
        elif features is not None:
            found = _from_features(config, config.head, features)
        else:
            found = _new(config, config.head)
        if config.from_ is not None and not found.trains_backbone:
            raise UserError(
                f"--from {config.from_}: the network ends at {found.end}, before that layer, and only the "
                "head follows; name an earlier layer, or start from a model on a later one"
            )
        return found if features is None else found._on(features, config)

    @property
    def trains_backbone(self) -> bool:
        return self.end != self.frozen.provenance.cut

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of what comes out of the cut."""
        tail = self.frozen.build_tail(self.end)
        shape = tail.input_shape if tail is not None else self.frozen.build().output_shape
        return tuple(shape[1:])

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """Of the model's training before."""
        return list(self.model.manifest.stages) if self.model else []

    @property
    def classes(self) -> list[str] | None:
        """Of the head, if it is a trained one."""
        return self.model.classes if self.model and self.start is not None else None

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that identify it."""
        model = self.model
        made = {"model": model.folder.uri, "model_created": model.manifest.created} if model else {}
        return {**made, "provenance": self.frozen.provenance.identity()}

    def first_trained(self, config: FinetuneConfig) -> str | None:
        """The first layer that is trained; None if only the head is."""
        if config.from_ is not None or not self.trains_backbone:
            return config.from_
        before: str = self.stages[-1]["from"]
        return before

    def learning_rate(self, config: FinetuneConfig) -> float:
        """The first step size."""
        known = self.frozen.provenance.weights != "none" or any(stage["from"] for stage in self.stages)
        small = self.trains_backbone and known
        return config.learning_rate or (_LEARNING_RATE if small else self.head.learning_rate)

    def _on(self, features: FeatureSet, config: FinetuneConfig) -> StartingPoint:
        """The same, with the precision in which these features are there."""
        own, theirs = self.frozen.provenance, features.provenance
        for name, default in (("precision", "auto"), ("store", "float32")):
            asked, there = getattr(config, name), getattr(theirs, name)
            if asked not in (default, there):
                raise UserError(f"{option(name)} {asked}: {features.folder.uri} is in {there}; leave it away")
        own = replace(own, precision=theirs.precision, store=theirs.store)
        if differences := theirs.differences(own):
            raise UserError(
                f"{features.folder.uri} is of another provenance than is needed ({'; '.join(differences)}): "
                f"extract with --cut {own.cut} and all else as before, or give the images"
            )
        return replace(self, frozen=replace(self.frozen, provenance=own))


def _new(config: FinetuneConfig, head: str) -> StartingPoint:
    backbone = registry.backbone(config.backbone or DEFAULT)
    cut = cut_before(backbone, config.from_) if config.from_ else None
    options = {name: getattr(config, name) for name in (*_NETWORK, "precision", "store")}
    frozen = FrozenPart.decide(NetworkConfig(**options, cut=cut), seed=config.seed)
    return StartingPoint(frozen=frozen, end=backbone.cuts[-1], head=registry.head(head))


def _from_features(config: FinetuneConfig, head: str, features: FeatureSet) -> StartingPoint:
    frozen = FrozenPart.of(features.provenance)
    _check_network(config, features.provenance, features.folder.uri)
    cut = cut_before(frozen.backbone, config.from_) if config.from_ else features.provenance.cut
    frozen = replace(frozen, provenance=replace(frozen.provenance, cut=cut))
    # Without --from, only the head is trained, wherever the cut is.
    end = frozen.backbone.cuts[-1] if config.from_ else cut
    return StartingPoint(frozen=frozen, end=end, head=registry.head(head))


def _trained(config: FinetuneConfig, model: Model) -> StartingPoint:
    made = model.provenance
    _check_network(config, made, model.folder.uri)
    backbone = registry.backbone(made.backbone)
    whole, end = model.load(), model.manifest.end
    arrays = backbone_arrays(whole, backbone, made.image_size, end)
    cut = cut_before(backbone, config.from_) if config.from_ else made.cut
    provenance = replace(
        made,
        cut=cut,
        precision=chosen_precision(backbone, config.precision),
        store=config.store,
    )
    if cut != INPUT and cut not in layers_up_to(backbone, made.cut):
        # Some of what is frozen now was trained before.
        provenance = replace(provenance, weights=model.folder.uri, weights_sha256=digest(arrays))
    classifier = whole.get_layer("head").get_layer("classifier")
    return StartingPoint(
        frozen=FrozenPart(backbone, arrays, provenance),
        end=end,
        head=registry.head(config.head or model.manifest.head),
        start=None if config.head else classifier.get_weights(),
        model=model,
    )


def _check_network(config: FinetuneConfig, made: Provenance, where: str) -> None:
    """Raise UserError if the settings name another network than a model or features were made with."""
    for name in _NETWORK:
        asked, there = getattr(config, name), getattr(made, name)
        if asked is not None and asked != there:
            raise UserError(
                f"{option(name)} {asked}: {where} was made with {there}; leave the option away, "
                "or start from another"
            )
