"""What is checked of a recipe and its images before the first stage starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlray.core.config import FinetuneConfig, TrainConfig
from tlray.core.errors import UserError
from tlray.core.manifest import MANIFEST
from tlray.core.storage import Folder
from tlray.images.augment import Augmentation
from tlray.images.listing import Images
from tlray.models import frozen, layers, registry
from tlray.recipes.stage import COMMANDS, IMAGES, Stage
from tlray.training import checks

_MADE = ("train", "test")
"""The splits that a fraction makes."""


def check(stages: Sequence[Stage], images: str, out: str) -> None:
    """Raise UserError for what would otherwise fail a late stage, after hours."""
    source = Images.open(images)
    source.check_outside(Folder.open(out))
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        _check_settings(stage.config)
        if isinstance(stage.config, FinetuneConfig):
            _check_finetune(stage, stage.config, by_name)
    if any(getattr(stage.config, "classes", None) for stage in stages):
        labels = sorted({image.label for image in source if image.label is not None})
        for stage in stages:
            if isinstance(stage.config, TrainConfig):
                checks.check(stage.config, labels, images)
    _check_splits(stages, by_name, source, images)
    for stage in stages:
        output = stage.output(out)
        if COMMANDS[stage.command].resumes or not is_written(output):
            continue
        for model in stage.places(images, out).values():
            if model != images and not Folder.open(model).is_file(MANIFEST):
                raise UserError(
                    f"{output} is there, but the model {model} it was made with is not: "
                    "remove the file, or choose another --out"
                )


def _check_settings(settings: Any) -> None:
    """What a job would check of its settings alone."""
    for kind in ("backbone", "head"):
        if name := getattr(settings, kind, None):
            registry.find(f"{kind}s", name)
    if (augment := getattr(settings, "augment", None)) is not None:
        Augmentation.parse(augment)
    if isinstance(settings, TrainConfig):
        # The classes are not known yet.
        checks.check(replace(settings, classes=None), ("", ""), "")


def _check_finetune(stage: Stage, settings: FinetuneConfig, by_name: Mapping[str, Stage]) -> None:
    if stage.inputs["images"] != IMAGES and settings.augment is not None:
        raise UserError(
            f'stage {stage.name} has augment, but images = "{stage.inputs["images"]}" is a feature set: '
            f'views are made of the images themselves; remove augment, or write images = "{IMAGES}"'
        )
    if settings.from_ is not None:
        backbone = registry.backbone(_backbone(stage, by_name))
        if settings.from_ not in backbone.cuts:  # Those are layers, without a look at the network.
            layers.cut_before(backbone, settings.from_)


def _backbone(stage: Stage, by_name: Mapping[str, Stage]) -> str:
    """The backbone that a stage has, or gets from the one it starts from."""
    for source in (stage.inputs.get(name, IMAGES) for name in ("model", "features", "images", "data")):
        if source != IMAGES:
            return _backbone(by_name[source], by_name)
    return str(getattr(stage.config, "backbone", None) or frozen.DEFAULT)


def is_written(output: str) -> bool:
    """Whether a table of predictions is there, and not one of a job that still has its parts."""
    place = Folder.open(output)
    return place.is_file() and not Folder.open(f"{output}.parts").exists()


def _check_splits(stages: Sequence[Stage], by_name: Mapping[str, Stage], source: Images, images: str) -> None:
    needed: dict[str, Stage] = {}
    for stage in stages:
        split, maker = COMMANDS[stage.command].split(stage.config), _splitter(stage, by_name)
        if split is not None and maker is None:
            needed.setdefault(split, stage)
        elif split is not None and split not in _MADE and maker is not None:
            raise UserError(
                f"stage {stage.name} needs the split {split!r}, but stage {maker.name} has split = "
                f"{maker.config.split:g}, which makes only {' and '.join(_MADE)}"
            )
        if maker is stage and (there := next(iter(source)).split):
            raise UserError(
                f"stage {stage.name} has split = {stage.config.split:g}, but {images} has splits already "
                f"({there}):\ntake it away with --set {stage.name}.split= or give a folder without splits"
            )
    _find(needed, source, images)


def _find(needed: Mapping[str, Stage], source: Images, images: str) -> None:
    """Look for the splits in the images; no further than to the last of them."""
    if not needed:
        return
    found: set[Any] = set()
    for image in source:
        found.add(image.split)
        if needed.keys() <= found:
            return
    missing = next(split for split in needed if split not in found)
    there = ", ".join(sorted(found - {None})) or "none"
    raise UserError(
        f"{images} has no split {missing!r}, which stage {needed[missing].name} needs; its splits: {there}\n"
        f"expected images in {images.rstrip('/')}/{missing}/CLASS/, or another split by --set"
    )


def _splitter(stage: Stage, by_name: Mapping[str, Stage]) -> Stage | None:
    """The stage that assigns the splits that this one sees; None if they are the images' own."""
    if isinstance(getattr(stage.config, "split", None), float):
        return stage
    sources = (stage.inputs.get(name, IMAGES) for name in COMMANDS[stage.command].splits_of)
    above = (_splitter(by_name[source], by_name) for source in sources if source != IMAGES)
    return next((maker for maker in above if maker is not None), None)
