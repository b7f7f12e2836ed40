"""The task of a training worker and its result. This module does not import Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tlray.core.config import TrainConfig
from tlray.features.feature_set import Rows
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.models.layers import Arrays
from tlray.training.view_stream import ViewSource

Report = Callable[[dict[str, float]], None]
"""Called with epoch (from 1), loss, accuracy and, with validation rows, val_loss and val_accuracy."""


class Worker(Protocol):
    """One of the processes that train together."""

    rank: int
    """The number of this worker, from 0."""
    count: int
    """The number of workers."""
    scratch: str | None
    """A local folder for temporary files; None for the system's."""

    def report(self, metrics: dict[str, float]) -> None:
        """Send the metrics of an epoch, which are the same on each worker, to the command."""

    def latest(self) -> AbstractContextManager[str | None]:
        """Give a folder with the last checkpoint, which an earlier command may have made, or None."""

    def save(self, folder: str | None) -> None:
        """Keep a copy of this folder as the checkpoint. All workers call this; only one has a folder."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training, as the command's process builds it and sends it to each worker.

    Its arrays may be in Ray's object store, which is read-only.
    """

    config: TrainConfig
    learning_rate: float
    """The learning rate of the first step."""
    head: Head
    classes: int
    """The number of classes."""
    frozen: FrozenPart
    """The frozen part, with the weights of the whole network; it becomes a part of the model."""
    end: str
    """The layer of the backbone whose output the head takes; the cut, if only the head is trained."""
    head_weights: Arrays | None
    """The weights of the head to start from; None for new ones."""
    features: npt.NDArray[Any] | None
    """Training rows, (rows, *shape), or with views (rows, views, *shape); None if there is a `source`."""
    targets: npt.NDArray[np.int64]
    """The index of the class of each training row, (rows,)."""
    validation: tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None
    """The features and targets of the validation rows; None if there are none."""
    source: ViewSource | None = None
    """The source of new views of the training images in each epoch."""
    has_views: bool = False
    """Whether each training row has several views, which the epochs take in turn."""
    checkpoint_seconds: float = 0
    """The least time between two checkpoints; 0 makes one after each epoch."""


def targets(rows: Rows, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the index of the class of each row, (rows,). All rows must have a label."""
    numbers: dict[str | None, int] = {label: index for index, label in enumerate(classes)}
    return np.array([numbers[label] for label in rows.labels], np.int64)


@dataclass(frozen=True)
class Trained:
    """The result of a training, which the first worker returns."""

    files: dict[str, bytes]
    """The content of the files of the model's folder, by name."""
    history: list[dict[str, float]]
    """The metrics of each epoch."""
    counts: dict[str, int]
    """The entries trainable_tensors, tensors, trainable_parameters and parameters, of the whole network."""
    seconds: float
    """Seconds that the epochs took."""
    waited: float
    """Seconds of these in which a step waited for its features."""
