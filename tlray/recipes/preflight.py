"""Checks a recipe and its images before the first stage starts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tlray.core.config import FinetuneConfig, TrainConfig
from tlray.core.errors import UserError
from tlray.core.manifest import MANIFEST
from tlray.core.storage import Folder
from tlray.images.account import training_classes
from tlray.images.augment import Augmentation
from tlray.images.conventions import ColumnNames
from tlray.images.listing import Images
from tlray.models import frozen, layers, registry
from tlray.recipes.stage import COMMANDS, IMAGES, Stage, key
from tlray.training import checks

_ASSIGNED = ("train", "test")
"""The splits that `split = FRACTION` assigns."""
_BEGUN = r"index|manifest\.json|\.training|report\.json|\.report\.json\..*|\.parts-.*"
"""One of these names is in every folder that a stage has begun, even if it was killed."""


def check(stages: Sequence[Stage], images: str, out: str) -> None:
    """Raise UserError for a mistake that would otherwise stop a late stage after hours of work."""
    source = Images.open(images, _columns(stages))
    source.check_outside(Folder.open(out))
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        _check_settings(stage.config)
        _check_features(stage)
        if isinstance(stage.config, FinetuneConfig):
            _check_finetune(stage, stage.config, by_name)
        if (copies := getattr(stage.config, "annotate", None)) is not None:
            _check_copies(stage, copies, Folder.open(out), by_name)
    if any(getattr(stage.config, "classes", None) for stage in stages):
        labels = training_classes(Counter((image.split, image.label) for image in source))
        for stage in stages:
            if isinstance(stage.config, TrainConfig):
                checks.check(stage.config, labels, images)
    _check_splits(stages, by_name, source, images)
    for stage in stages:
        _check_output(stage, out)
        for model in stage.places(images, out).values() if stage.is_complete(out) else ():
            if model != images and not Folder.open(model).is_file(MANIFEST):
                raise UserError(
                    f"{stage.output(out)} exists, but {model}, the model that made it, does not: "
                    "remove the file, or choose another --out"
                )


def _check_output(stage: Stage, out: str) -> None:
    """Raise UserError if something else than the output of the stage is in its place."""
    place, suffix = stage.output(out), COMMANDS[stage.command].suffix
    if suffix:
        place = f"{place.removesuffix(suffix)}.errors{suffix}"
        is_free = stage.is_complete(out) or Folder.open(f"{stage.output(out)}.parts.json").exists()
    else:
        folder = Folder.open(place)
        names = ["a file"] if folder.is_file() else folder.names()
        is_free = not names or any(re.fullmatch(_BEGUN, name) for name in names)
    if not is_free and Folder.open(place).exists():
        raise UserError(f"{place} is no output of stage {stage.name}: choose another --out, or remove it")


def _columns(stages: Sequence[Stage]) -> ColumnNames:
    """The columns that all stages which read the images must name alike."""
    columns = {ColumnNames.of(stage.config): stage for stage in stages if IMAGES in stage.inputs.values()}
    if len(columns) > 1:
        raise UserError(
            f"the stages {' and '.join(stage.name for stage in columns.values())} read different columns of "
            "the images: give them the same path-column, label-column and split-column"
        )
    return next(iter(columns), ColumnNames())


def _check_settings(settings: Any) -> None:
    """Check the settings that a job could check without its inputs."""
    for kind in ("backbone", "head"):
        if name := getattr(settings, kind, None):
            registry.find(f"{kind}s", name)
    if (augment := getattr(settings, "augment", None)) is not None:
        Augmentation.parse(augment)
    if isinstance(settings, TrainConfig):
        # The classes of the images are not known yet.
        checks.check(replace(settings, classes=None), ("", ""), "")


def _check_copies(stage: Stage, name: str, out: Folder, by_name: Mapping[str, Stage]) -> None:
    """Raise UserError unless `annotate` names a folder in that of the results, apart from all stages."""
    is_link = out.is_local and os.path.islink(out.join(name))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in by_name or is_link:
        raise UserError(
            f"stage {stage.name}: annotate = {name!r}: expected letters, digits, - and _, as a name for the "
            f"folder of the copies in {out.uri}, which is no link and no output of a stage"
        )


def _check_features(stage: Stage) -> None:
    """Raise UserError if a stage that reads features has a setting that needs the images themselves."""
    images = "data" if stage.command == "evaluate" else "images"
    columns = ("path_column", "label_column", "split_column")
    for name in ("augment", "split", *columns) if stage.command == "finetune" else columns:
        if stage.inputs.get(images, IMAGES) != IMAGES and getattr(stage.config, name) is not None:
            raise UserError(
                f'stage {stage.name} has {key(name)}, but {images} = "{stage.inputs[images]}" is a feature '
                f"set: {key(name)} needs the images themselves; remove it with --set {stage.name}."
                f'{key(name)}=, or write {images} = "{IMAGES}"'
            )


def _check_finetune(stage: Stage, settings: FinetuneConfig, by_name: Mapping[str, Stage]) -> None:
    if settings.from_ is not None:
        backbone = registry.backbone(_backbone(stage, by_name))
        if settings.from_ not in backbone.cuts:  # The cuts are layers, so the network need not be built.
            layers.cut_before(backbone, settings.from_)


def _backbone(stage: Stage, by_name: Mapping[str, Stage]) -> str:
    """The name of the backbone of a stage, which may come from the earlier stage it starts from."""
    for source in (stage.inputs.get(name, IMAGES) for name in ("model", "features", "images", "data")):
        if source != IMAGES:
            return _backbone(by_name[source], by_name)
    return str(getattr(stage.config, "backbone", None) or frozen.DEFAULT)


def _check_splits(stages: Sequence[Stage], by_name: Mapping[str, Stage], source: Images, images: str) -> None:
    needed: dict[str, Stage] = {}
    for stage in stages:
        split, splitter = COMMANDS[stage.command].split(stage.config), _splitter(stage, by_name)
        if split is not None and splitter is None:
            needed.setdefault(split, stage)
        elif split is not None and split not in _ASSIGNED and splitter is not None:
            raise UserError(
                f"stage {stage.name} needs the split {split!r}, but stage {splitter.name} has split = "
                f"{splitter.config.split:g}, which assigns only {' and '.join(_ASSIGNED)}"
            )
        if splitter is stage and (existing := next(iter(source)).split):
            raise UserError(
                f"stage {stage.name} has split = {stage.config.split:g}, but {images} already has splits "
                f"({existing}):\nremove it with --set {stage.name}.split= or give a folder without splits"
            )
    unlabelled = {split for split, stage in needed.items() if stage.command == "predict"}
    splits: set[Any] = set()
    for image in source if needed else ():
        if image.label is not None or image.split in unlabelled:
            splits.add(image.split)
        if needed.keys() <= splits:
            return  # The rest of the images need not be listed.
    names = ", ".join(sorted(splits - {None})) or "none"
    for split, stage in needed.items():
        if split not in splits:
            raise UserError(
                f"{images} has no split {split!r}, which stage {stage.name} needs; its splits: {names}\n"
                f"expected images in {images.rstrip('/')}/{split}/CLASS/, or another split by --set"
            )


def _splitter(stage: Stage, by_name: Mapping[str, Stage]) -> Stage | None:
    """The stage that assigns the splits of this stage's input; None if the images have their own splits."""
    if isinstance(getattr(stage.config, "split", None), float):
        return stage
    sources = (stage.inputs.get(name, IMAGES) for name in COMMANDS[stage.command].splits_of)
    splitters = (_splitter(by_name[source], by_name) for source in sources if source != IMAGES)
    return next((splitter for splitter in splitters if splitter is not None), None)
