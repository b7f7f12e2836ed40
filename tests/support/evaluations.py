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
    values = {
        "command": "fit",
        "head": "dense-256",
        "from": None,
        "augment": None,
        "views": None,
        "epochs": epochs,
        "stopped_epoch": None,
        "kept_epoch": epochs,
        "monitor": "val_loss",
        "trainable_tensors": 4,
        "tensors": 30,
        "trainable_parameters": 2097665,
        "metrics": {name: value for name, value in rows[-1].items() if name != "epoch"} if rows else {},
        "history": rows,
        "seconds": 12.3,
    }
    return values | changes


def evaluation(classes=("cats", "dogs"), matrix=((486, 14), (20, 480)), **changes) -> Evaluation:
    matrix = np.asarray(matrix)
    right = np.diag(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / matrix.sum(0), right / matrix.sum(1)
        f1 = 2 * precision * recall / (precision + recall)
    values = {
        "model": "/jobs/vgg16/model",
        "data": "/data/cats-dogs",
        "split": "test",
        "images": int(matrix.sum()) + 5,
        "rows": int(matrix.sum()) + 2,
        "errors": 3,
        "unlabelled": 2,
        "loss": 0.0912,
        "accuracy": float(right.sum() / matrix.sum()) if matrix.sum() else math.nan,
        "classes": tuple(classes),
        "confusion_matrix": tuple(tuple(map(int, row)) for row in matrix),
        "scores": tuple(
            ClassScore(
                label=name,
                precision=float(precision[index]),
                recall=float(recall[index]),
                f1=float(f1[index]),
                support=int(matrix[index].sum()),
            )
            for index, name in enumerate(classes)
        ),
        "mistakes": (
            Mistake(path="cats/1.jpg", label="cats", predicted="dogs", probability=0.9996, thumbnail=JPEG),
            Mistake(path="dogs/2.jpg", label="dogs", predicted="cats", probability=0.75),
        ),
        "stages": (stage(3),),
        "provenance": {"backbone": "vgg16", "training": {"learning_rate": 2e-5}},
        "seconds": 12.34,
    }
    return Evaluation(**(values | changes))


def many(count: int, **changes) -> Evaluation:
    """Every class is right 8 times of 10; class n is taken for n + 1 and n + 2 once each."""
    one = np.eye(count, dtype=int)
    matrix = 8 * one + np.roll(one, 1, axis=1) + np.roll(one, 2, axis=1)
    return evaluation([f"class-{n}" for n in range(count)], matrix, **changes)
