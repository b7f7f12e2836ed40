"""Evaluations that were never made, of models that were never trained."""

import math
from typing import Any

import numpy as np

from tlray.evaluation.scores import ClassScore, Evaluation, Mistake

HOSTILE = "<script>alert('x')</script>"
JPEG = b"\xff\xd8 thumbnail \xff\xd9"


def history(epochs: int, names=("loss", "accuracy", "val_loss", "val_accuracy")) -> list[dict[str, float]]:
    scale = {"loss": 1, "accuracy": -0.3, "val_loss": 1.2, "val_accuracy": -0.4}
    return [
        {"epoch": n, **{name: ("accuracy" in name) + scale[name] / n for name in names}}
        for n in range(1, epochs + 1)
    ]


def stage(epochs: int = 30, **changes) -> dict[str, Any]:
    """As a model's manifest has it."""
    rows = changes.get("history", history(epochs))
    metrics = {name: value for name, value in rows[-1].items() if name != "epoch"} if rows else {}
    return {
        **{"command": "fit", "head": "dense-256", "from": None, "augment": None, "views": None},
        **{"epochs": epochs, "stopped_epoch": None, "kept_epoch": epochs, "monitor": "val_loss"},
        **{"trainable_tensors": 4, "tensors": 30, "trainable_parameters": 2097665},
        **{"metrics": metrics, "history": rows, "seconds": 12.3},
        **changes,
    }


def evaluation(classes=("cats", "dogs"), matrix=((486, 14), (20, 480)), **changes) -> Evaluation:
    matrix = np.asarray(matrix)
    right, support, count = np.diag(matrix), matrix.sum(1), int(matrix.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / matrix.sum(0), right / support
        f1 = 2 * precision * recall / (precision + recall)
    columns = [column.tolist() for column in (precision, recall, f1, support)]
    accuracy = float(right.sum() / count) if count else math.nan
    mistakes = (
        Mistake("cats/1.jpg", "cats", "dogs", probability=0.9996, thumbnail=JPEG),
        Mistake("dogs/2.jpg", "dogs", "cats", probability=0.75),
    )
    values = {
        **{"model": "/jobs/vgg16/model", "data": "/data/cats-dogs", "split": "test"},
        **{"images": count + 5, "rows": count + 2, "errors": 3, "unlabelled": 2, "classes": tuple(classes)},
        **{"loss": 0.0912, "accuracy": accuracy, "confusion_matrix": tuple(map(tuple, matrix.tolist()))},
        **{"scores": tuple(map(ClassScore, classes, *columns)), "mistakes": mistakes, "stages": (stage(3),)},
        **{"provenance": {"backbone": "vgg16", "training": {"learning_rate": 2e-5}}, "seconds": 12.34},
    }
    return Evaluation(**(values | changes))


def many(count: int, **changes) -> Evaluation:
    """Every class is right 8 times of 10; class n is taken for n + 1 and n + 2 once each."""
    right = np.eye(count, dtype=int)
    matrix = 8 * right + np.roll(right, 1, axis=1) + np.roll(right, 2, axis=1)
    return evaluation([f"class-{n}" for n in range(count)], matrix, **changes)
