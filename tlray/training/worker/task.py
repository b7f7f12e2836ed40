"""What a training worker is given, and what it brings back; nothing here imports Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tlray.core.config import TrainConfig
from tlray.models.frozen import FrozenPart
from tlray.models.interfaces import Head
from tlray.training.worker.batches import GlobalBatches


class Features(Protocol):
    """Where the inputs of the trained part come from."""

    waited: float
    """Seconds that were spent waiting for them to be made."""

    def take(self, epoch: int, step: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The features of these rows in that step of that epoch, (rows, *shape)."""


class Checkpoints(Protocol):
    """Where the state of training is kept."""

    def latest(self) -> AbstractContextManager[str | None]:
        """The folder of the last checkpoint, for as long as the block lasts."""

    def save(self, folder: str | None) -> None:
        """Keep a copy of this folder as the checkpoint; all workers call it together, one has a folder."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every worker is told."""

    config: TrainConfig
    learning_rate: float
    """The first one."""
    head: Head
    classes: int
    frozen: FrozenPart
    """What makes the features, with the weights of the whole network; a part of the model."""
    end: str
    """The layer of the backbone that the head follows on; the cut, if only the head is trained."""
    start: Sequence[npt.NDArray[Any]] | None
    """Weights of the head; None: new ones."""
    features: Callable[[GlobalBatches, range], Features]
    """Makes the training rows' features, given a worker's batches and the epochs to come."""
    targets: npt.NDArray[np.int64]
    """Class of each training row, (rows,)."""
    class_weights: npt.NDArray[np.float32] | None
    """Weight of each class in the loss, (classes,)."""
    validation: tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None
    """Features and classes of all validation rows."""
    checkpoint_seconds: float
    """The least time between checkpoints; 0 is one after each epoch."""


@dataclass(frozen=True)
class Trained:
    """What the first worker brings home; here, so that reading it loads no Keras."""

    files: dict[str, bytes]
    """Of the model's folder, by name."""
    history: list[dict[str, float]]
    counts: dict[str, int]
    """trainable_tensors, tensors, trainable_parameters, parameters: of the whole network."""
    seconds: float
    """That the epochs took."""
    waited: float
    """Seconds of these that a step waited for its features to be made."""
