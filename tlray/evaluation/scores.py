"""What an evaluation measures, collected batch by batch."""

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

TILES = 48
"""The page shows this many mistakes at most, so that it stays small enough to be sent by mail."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image whose most probable class is not its label."""

    path: str
    label: str
    predicted: str
    probability: float
    """What the model gave its wrong answer, from 0 to 1."""
    thumbnail: bytes | None = None
    """A JPEG of at most 160 pixels a side; None where the image could not be had."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class is told from the others."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """The number of images that truly are of this class."""

    @property
    def meaningful(self) -> tuple[float, float, float]:
        """Precision, recall and F1; a class without images has neither recall nor F1."""
        return (
            (self.precision, self.recall, self.f1) if self.support else (self.precision, math.nan, math.nan)
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """Everything that was measured of one model on one set of images."""

    model: str
    data: str
    split: str | None
    images: int
    rows: int
    errors: int
    unlabelled: int
    loss: float
    accuracy: float
    classes: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    """Rows are the true classes, columns the predicted ones, both in the order of `classes`."""
    scores: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...]
    """The most confidently wrong first."""
    provenance: Mapping[str, Any]
    seconds: float
    stages: tuple[Mapping[str, Any], ...] = ()
    """How the model was trained, oldest stage first: the entries of "stages" in the model's manifest."""

    @property
    def evaluated(self) -> int:
        """The number of images behind the accuracy: those with a label and a prediction."""
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
        low, high = ((centre + side) / (1 + z2 / count) for side in (-spread, spread))
        return max(low, 0.0), min(high, 1.0)

    def confusions(self, most: int = 10) -> list[tuple[int, int, str, str]]:
        """The most frequent confusions: how many, of how many, true class, predicted class."""
        cells = (
            (count, sum(row), self.classes[true], self.classes[predicted])
            for true, row in enumerate(self.confusion_matrix)
            for predicted, count in enumerate(row)
            if count and true != predicted
        )
        return sorted(cells, key=lambda cell: (-cell[0], cell[1]))[:most]

    def weakest(self, most: int = 10) -> list[ClassScore]:
        """The classes with the lowest F1 among those that have images."""
        present = (score for score in self.scores if score.support)
        return sorted(present, key=lambda score: (math.isfinite(score.f1), score.f1))[:most]

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types, without the thumbnails; null for what is not a finite number."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["scores"] = [vars(score) for score in self.scores]
        told = ("path", "label", "predicted", "probability")
        content["mistakes"] = [{name: getattr(mistake, name) for name in told} for mistake in self.mistakes]
        content |= {"evaluated": self.evaluated, "accuracy_interval": self.accuracy_interval}
        return {name: plain(value) for name, value in content.items()}


class Tally:
    """What is kept of the rows that were seen: a few numbers of each, and the worst mistakes."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.true: list[npt.NDArray[np.int64]] = []
        self.predicted: list[npt.NDArray[np.int64]] = []
        self.loss = 0.0
        self.rows = 0
        self.worst: list[tuple[float, str, int, int]] = []

    def add(self, batch: Rows) -> None:
        """Take in rows whose "features" are probabilities."""
        number: dict[str | None, int] = {label: index for index, label in enumerate(self.classes)}
        true = np.array([number[label] for label in batch.labels], np.int64)
        predicted = batch.features.argmax(axis=1)
        given = batch.features[np.arange(len(true)), true].astype(np.float64)
        # Clipped as scikit-learn's log_loss does: float32 knows no smaller distance from 1.
        self.loss -= float(np.log(np.clip(given, np.finfo(np.float32).eps, 1)).sum())
        self.true.append(true)
        self.predicted.append(predicted)
        self.rows += len(true)
        for row in np.flatnonzero(true != predicted):
            probability = float(batch.features[row, predicted[row]])
            heapq.heappush(self.worst, (probability, batch.paths[row], int(true[row]), int(predicted[row])))
            if len(self.worst) > TILES:
                heapq.heappop(self.worst)

    def evaluation(self, thumbnails: Mapping[str, bytes], *, started: float, **facts: Any) -> Evaluation:
        """The scores of all rows, with the thumbnails of the worst mistakes that are there, by path."""
        from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

        if not self.rows:
            raise JobError("no image of these could be decoded: there is nothing to evaluate")
        true, predicted = np.concatenate(self.true), np.concatenate(self.predicted)
        numbers = list(range(len(self.classes)))
        scores = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=np.nan)
        return Evaluation(
            rows=self.rows,
            loss=self.loss / self.rows,
            accuracy=float(accuracy_score(true, predicted)),
            classes=tuple(self.classes),
            confusion_matrix=tuple(map(tuple, confusion_matrix(true, predicted, labels=numbers).tolist())),
            scores=tuple(
                ClassScore(label=label, precision=precision, recall=recall, f1=f1, support=support)
                for label, precision, recall, f1, support in zip(
                    self.classes, *(column.tolist() for column in scores), strict=True
                )
            ),
            mistakes=tuple(
                Mistake(
                    path=path,
                    label=self.classes[label],
                    predicted=self.classes[wrong],
                    probability=probability,
                    thumbnail=thumbnails.get(path),
                )
                for probability, path, label, wrong in sorted(self.worst, reverse=True)
            ),
            seconds=round(time.monotonic() - started, 3),
            **facts,
        )
