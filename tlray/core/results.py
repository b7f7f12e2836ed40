"""What jobs report, in their results, in `--json` and in manifests: counts, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tlray.core.record import Record


@dataclass(frozen=True, kw_only=True)
class ImageError(Record):
    """An image that could not be used: a row of the error table."""

    path: str
    stage: str
    """"read" or "decode"."""
    error: str
    """The kind of error, e.g. "NotAnImage"."""
    message: str


@dataclass(frozen=True, kw_only=True)
class Account(Record):
    """What a job has understood of its images."""

    images: int
    complete: bool
    """Whether all images are counted; otherwise the listing still went on."""
    splits: dict[str, int]
    """The images of each split; empty if the images have no splits."""
    classes: dict[str, int]
    """The images of each class, in alphabetical order."""
    unlabelled: int
    """The images without a label."""
    columns: dict[str, str]
    """What "path", "label" and "split" were taken from, if not from folders, e.g. columns of a table."""
    passed_over: dict[str, int]
    """The files that are not images, by suffix."""
    unread: dict[str, int]
    """The files of image kinds that cannot be read here, by suffix."""
    hidden: int
    """The hidden files and folders."""
    warnings: list[str]
    """What is doubtful about the images, and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class NodeTime(Record):
    """The share of one node in a pass over images."""

    node: str
    """Ray's id of the node."""
    host: str
    """The name of the machine, which several nodes may share."""
    actors: int
    """Processes on this node that held the network."""
    rows: int
    """Rows that these processes wrote."""
    seconds: float
    """Seconds that these processes spent computing and writing, summed over them."""


@dataclass(frozen=True, kw_only=True)
class InferenceTime(Record):
    """The time of a pass over images, in seconds; all except `span` are sums over tasks or actors."""

    span: float
    """Time during which at least one actor was at work: from its first image to its last file."""
    reading: float
    decoding: float
    network: float
    writing: float
    waiting: float
    """Time that actors waited for images, between their first image and their last."""
    actors: int
    """Processes that held the network."""
    device: str
    """What the network ran on: "GPU" or "CPU"."""
    steady_images_per_second: float
    """Images divided by `span`."""
    nodes: list[NodeTime]


@dataclass(frozen=True, kw_only=True)
class InferenceCounts(Record):
    """The counts of a pass over images, and what limited its speed."""

    images: int
    """Images in the data set; equal to the sum of `rows` and `errors`."""
    rows: int
    """Images that became rows."""
    errors: int
    """Images that became error rows."""
    seconds: float
    """Duration of this run."""
    images_per_second: float
    """Images of this run divided by `seconds`."""
    limited_by: str
    """"reading", "decoding", "network", "writing" or "startup"; "nothing" if this run had nothing to do."""
    time: InferenceTime | None
    """Where the time of this run went; None if it had nothing to do."""


@dataclass(frozen=True, kw_only=True)
class TrainingTime(Record):
    """The time of a training, in seconds. Its JSON also has the keys of `inference`."""

    training: float
    """Duration of all epochs."""
    waited: float
    """The part of `training` during which steps waited for new views."""
    inference: InferenceTime | None = None
    """The passes over images before the training; None if this run had none."""

    def to_json(self) -> dict[str, Any]:
        """The times as one object, in which the keys of `inference` stand beside the others."""
        values = super().to_json()
        return {**(values.pop("inference") or {}), **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a record from what `to_json` returned; raises what `Record.from_json` raises."""
        before = {field: value for field, value in values.items() if field not in ("training", "waited")}
        return super().from_json({**values, "inference": before or None})


@dataclass(frozen=True, kw_only=True)
class TrainingSummary(Record):
    """The counts and metrics of a training, and what limited its speed."""

    rows: int
    """Training rows."""
    validation_rows: int
    epochs: int
    """Epochs that were trained."""
    kept_epoch: int
    """The epoch whose weights the model has, counted from 1."""
    stopped_epoch: int | None
    """The last epoch, counted from 0 as Keras does; None if training was not stopped early."""
    trainable_tensors: int
    """Weight tensors that were trained."""
    tensors: int
    """Weight tensors of the whole network."""
    errors: int
    """Images of this run that could not be decoded."""
    metrics: dict[str, float | None]
    """Metrics of the kept epoch: loss, accuracy and, with validation rows, val_loss and val_accuracy."""
    history: list[dict[str, float | None]]
    """The metrics of each epoch, and `epoch`, counted from 1; a number that is not finite is None."""
    seconds: float
    """Duration of the command."""
    limited_by: str
    """A value of `InferenceCounts.limited_by`, or "training"; "stream" if training waited for new views."""
    time: TrainingTime
