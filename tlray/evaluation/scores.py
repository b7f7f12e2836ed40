"""The scores of an evaluation, collected batch by batch."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.core.errors import JobError
from tlray.core.record import Record, plain
from tlray.features.feature_set import Rows

MAX_TILES = 48
"""The most mistakes on the page, which must stay small enough to be sent by mail."""


@dataclass(frozen=True)
class Mistake:
    """An image whose most probable class is not its label."""

    path: str
    label: str
    predicted: str
    probability: float
    """The probability of the predicted class, from 0 to 1."""
    thumbnail: bytes | None = None
    """A JPEG of at most 160 pixels a side; None if the image could not be read."""


@dataclass(frozen=True)
class ClassScore:
    """How well the model recognises one class."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """The number of images whose true class this is."""

    @property
    def meaningful(self) -> tuple[float, float, float]:
        """Precision, recall and F1; a class without images has neither recall nor F1."""
        recall, f1 = (self.recall, self.f1) if self.support else (math.nan, math.nan)
        return self.precision, recall, f1


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """The scores of one model on one set of images."""

    model: str
    """The URI of the model."""
    data: str
    """The URI of the images or the feature set."""
    split: str | None
    """The split that was evaluated; None for all images."""
    images: int
    """Images with a label; `rows` of them were evaluated, and `errors` could not be decoded."""
    rows: int
    errors: int
    unlabelled: int
    """Images without a label, which were left out."""
    loss: float
    """The mean cross-entropy."""
    accuracy: float
    """The share of images whose most probable class is their label."""
    classes: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    """The number of images by true class (rows) and predicted class (columns), in the order of `classes`."""
    scores: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...]
    """Images with a wrong prediction, those with the highest probability first."""
    provenance: Mapping[str, Any]
    """How the model was made."""
    seconds: float
    """Seconds that the command took."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """The trainings of the model, the oldest first: the entries of "stages" in its manifest."""

    @property
    def evaluated(self) -> int:
        """The number of images in the confusion matrix."""
        return sum(map(sum, self.confusion_matrix))

    @property
    def correct(self) -> int:
        """The number of images whose most probable class is their label."""
        return sum(row[index] for index, row in enumerate(self.confusion_matrix))

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """The 95 % Wilson score interval of the accuracy; None if nothing was evaluated."""
        if not (count := self.evaluated):
            return None
        share, z2 = self.correct / count, 1.959964**2
        centre = share + z2 / (2 * count)
        spread = math.sqrt(z2 * share * (1 - share) / count + (z2 / (2 * count)) ** 2)
        low, high = ((centre + distance) / (1 + z2 / count) for distance in (-spread, spread))
        return max(low, 0.0), min(high, 1.0)

    def confusions(self, most: int = 10) -> list[tuple[int, int, str, str]]:
        """Return the most frequent confusions: images, images of the true class, true and predicted class."""
        cells = (
            (count, sum(row), self.classes[true], self.classes[predicted])
            for true, row in enumerate(self.confusion_matrix)
            for predicted, count in enumerate(row)
            if count and true != predicted
        )
        return sorted(cells, key=lambda cell: (-cell[0], cell[1]))[:most]

    def weakest(self, most: int = 10) -> list[ClassScore]:
        """Return the classes with the lowest F1 among those that have images."""
        present = (score for score in self.scores if score.support)
        return sorted(present, key=lambda score: (math.isfinite(score.f1), score.f1))[:most]

    def to_json(self) -> dict[str, Any]:
        """Return all except the thumbnails in JSON's own types; null for numbers that are not finite."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["scores"] = [vars(score) for score in self.scores]
        names = ("path", "label", "predicted", "probability")
        content["mistakes"] = [{name: getattr(mistake, name) for name in names} for mistake in self.mistakes]
        content |= {"evaluated": self.evaluated, "accuracy_interval": self.accuracy_interval}
        return {name: plain(value) for name, value in content.items()}


class Tally:
    """Collects the true and predicted classes of all rows, the loss, and the worst mistakes."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.true: list[npt.NDArray[np.int64]] = []
        self.predicted: list[npt.NDArray[np.int64]] = []
        self.loss = 0.0
        self.rows = 0
        self.worst: list[tuple[float, str, int, int]] = []
        """Probability, path, true class and predicted class."""

    def add(self, batch: Rows) -> None:
        """Add rows whose "features" are probabilities."""
        number: dict[str | None, int] = {label: index for index, label in enumerate(self.classes)}
        true = np.array([number[label] for label in batch.labels], np.int64)
        predicted = batch.features.argmax(axis=1)
        probabilities = batch.features[np.arange(len(true)), true].astype(np.float64)
        # Clip as scikit-learn's log_loss does, by the smallest distance from 1 in float32.
        self.loss -= float(np.log(np.clip(probabilities, np.finfo(np.float32).eps, 1)).sum())
        self.true.append(true)
        self.predicted.append(predicted)
        self.rows += len(true)
        for row in np.flatnonzero(true != predicted):
            probability = float(batch.features[row, predicted[row]])
            heapq.heappush(self.worst, (probability, batch.paths[row], int(true[row]), int(predicted[row])))
            if len(self.worst) > MAX_TILES:
                heapq.heappop(self.worst)

    def evaluation(self, thumbnails: Mapping[str, bytes], *, started: float, **facts: Any) -> Evaluation:
        """Return the scores of all rows; `thumbnails` are those of mistakes, by path."""
        from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

        if not self.rows:
            raise JobError("none of the images could be decoded, so there is nothing to evaluate")
        true, predicted = np.concatenate(self.true), np.concatenate(self.predicted)
        numbers = list(range(len(self.classes)))
        scores = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=np.nan)
        return Evaluation(
            rows=self.rows,
            loss=self.loss / self.rows,
            accuracy=float(accuracy_score(true, predicted)),
            classes=tuple(self.classes),
            confusion_matrix=tuple(map(tuple, confusion_matrix(true, predicted, labels=numbers).tolist())),
            scores=tuple(map(ClassScore, self.classes, *(column.tolist() for column in scores))),
            mistakes=tuple(
                Mistake(path, self.classes[label], self.classes[wrong], probability, thumbnails.get(path))
                for probability, path, label, wrong in sorted(self.worst, reverse=True)
            ),
            seconds=round(time.monotonic() - started, 3),
            **facts,
        )
