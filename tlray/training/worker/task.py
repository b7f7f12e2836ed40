"""What a training worker is given, and what it brings back; nothing here imports Keras."""

from __future__ import annotations

from collections.abc import Sequence
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


class Worker(Protocol):
    """One of the processes that train together."""

    rank: int
    """Its number, from 0."""
    count: int
    """How many there are."""
    scratch: str | None
    """A local folder for temporary files; None: the system's."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the command the metrics of an epoch, which are the same on each worker."""

    def latest(self) -> AbstractContextManager[str | None]:
        """The folder of the last checkpoint, for as long as the block lasts; None if there is none."""

    def save(self, folder: str | None) -> None:
        """Keep a copy of this folder as the checkpoint; all workers call it together, one has a folder."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training, decided on in full: built where the command runs, and sent to each worker as it is.

    Its arrays may lie in Ray's object store, read-only, once for each node.
    """

    config: TrainConfig
    learning_rate: float
    """Of the first step."""
    head: Head
    classes: int
    """How many there are."""
    frozen: FrozenPart
    """What makes the features, with the weights of the whole network; a part of the model."""
    end: str
    """The layer of the backbone that the head follows on; the cut, if only the head is trained."""
    start: Arrays | None
    """Weights of the head to start from; None: new ones."""
    features: npt.NDArray[Any] | None
    """Of the training rows: (rows, *shape), or with `views` (rows, views, *shape); None with a `source`."""
    targets: npt.NDArray[np.int64]
    """The number of the class of each training row, (rows,)."""
    validation: tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None
    """Features and targets of the validation rows; None if there are none."""
    source: ViewSource | None = None
    """Where new views of the training images come from in each epoch."""
    views: bool = False
    """Whether each training row has several views, which are taken in turn."""
    checkpoint_seconds: float = 0
    """The least time between two checkpoints; 0 is one after each epoch."""


def targets(rows: Rows, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The number of the class of each row, (rows,); all rows have a label."""
    number: dict[str | None, int] = {label: index for index, label in enumerate(classes)}
    return np.array([number[label] for label in rows.labels], np.int64)


@dataclass(frozen=True)
class Trained:
    """What the first worker brings back."""

    files: dict[str, bytes]
    """Of the model's folder, by name."""
    history: list[dict[str, float]]
    counts: dict[str, int]
    """trainable_tensors, tensors, trainable_parameters, parameters: of the whole network."""
    seconds: float
    """That the epochs took."""
    waited: float
    """Seconds of these that a step waited for its features to be made."""
