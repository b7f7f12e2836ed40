"""What jobs report, in results, in `--json` and in manifests: counts, and where the time went."""

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
    """`read` or `decode`."""
    error: str
    """The kind of error, e.g. `NotAnImage`."""
    message: str


@dataclass(frozen=True, kw_only=True)
class NodeTime(Record):
    """The share of one node in a pass over images."""

    node: str
    """Ray's id of the node."""
    host: str
    """The name of the machine, which several nodes may share."""
    actors: int
    """Processes there that held the network."""
    rows: int
    """Rows that they wrote."""
    seconds: float
    """That they computed and wrote, summed over them."""


@dataclass(frozen=True, kw_only=True)
class InferenceTime(Record):
    """The time of a pass over images, in seconds; all but `span` are sums over tasks or actors."""

    span: float
    """While an actor held images: from the first image at the network to the last file written."""
    reading: float
    decoding: float
    network: float
    writing: float
    waiting: float
    """That actors waited for images, between their first and their last."""
    actors: int
    """Processes that held the network."""
    device: str
    """What the network ran on: "GPU" or "CPU"."""
    steady_images_per_second: float
    """Images divided by `span`."""
    nodes: list[NodeTime]


@dataclass(frozen=True, kw_only=True)
class InferenceCounts(Record):
    """What became of the images of a pass."""

    images: int
    """Images that were found."""
    rows: int
    """Images that became rows; `images` is the sum of `rows` and `errors`."""
    errors: int
    """Images that became error rows."""
    seconds: float
    """That this run took."""
    images_per_second: float
    """Images of this run divided by `seconds`."""
    limited_by: str
    """"reading", "decoding", "network", "writing" or "startup"; "nothing" if this run had nothing to do."""
    time: InferenceTime | None
    """Of this run; None if it had nothing to do."""


@dataclass(frozen=True, kw_only=True)
class TrainingTime(Record):
    """The time of a training, in seconds. In JSON, that of the pass before it is in the same object."""

    training: float
    """That the epochs took."""
    waited: float
    """That steps of them waited for new views."""
    inference: InferenceTime | None = None
    """Of the passes over the images before the training, if there were any in this run."""

    def to_json(self) -> dict[str, Any]:
        """One object, with the keys of `inference` if there is one."""
        values = super().to_json()
        return {**(values.pop("inference") or {}), **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; errors as of `Record.from_json`."""
        before = {field: value for field, value in values.items() if field not in ("training", "waited")}
        return super().from_json({**values, "inference": before or None})


@dataclass(frozen=True, kw_only=True)
class TrainingSummary(Record):
    """What became of a training."""

    rows: int
    """Rows that were trained on."""
    validation_rows: int
    epochs: int
    """Epochs that were trained."""
    kept_epoch: int
    """The epoch whose weights the model has, counted from 1."""
    stopped_epoch: int | None
    """The last epoch, counted from 0 as Keras does; None if training was not stopped early."""
    trainable_tensors: int
    """Tensors of weights that were trained."""
    tensors: int
    """Tensors of weights of the whole network."""
    errors: int
    """Images that could not be decoded, of those that this run read."""
    metrics: dict[str, float | None]
    """Of the weights that were kept: loss, accuracy and, with validation rows, val_loss and val_accuracy."""
    history: list[dict[str, float | None]]
    """The metrics of each epoch, and `epoch`, counted from 1; None for a number that is not finite."""
    seconds: float
    """That the command took."""
    limited_by: str
    """As of `InferenceCounts`; also "training", or "stream" if training waited for new views."""
    time: TrainingTime
