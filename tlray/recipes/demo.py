"""`tlray demo`: a whole job on the handwritten digits that come with scikit-learn."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from tlray.cluster import session
from tlray.core.errors import UserError
from tlray.core.record import Record

_SIZE = 64
"""The side length of the images in pixels, enlarged from 8 by 8."""


@dataclass(frozen=True, kw_only=True)
class DemoResult(Record):
    """The accuracy of the demo's model and the paths of all results."""

    accuracy: float
    """Accuracy on the test images."""
    seconds: float
    page: str
    """Path of the report's web page."""
    plots: str
    model: str
    features: str
    predictions: str


def demo(out: str, *, address: str | None = None) -> DemoResult:
    """Write 1,797 digits as an image folder, then extract, fit, evaluate and predict.

    Args:
        out: a local folder, which is new, empty or from an earlier demo.
        address: the address of a running Ray; None starts a local Ray and stops it at the end.

    Raises:
        UserError: the folder holds something else, or the VGG16 weights cannot be found.
        JobError: a step fails.
    """
    from tlray.evaluation.evaluate import evaluate
    from tlray.evaluation.predict import predict
    from tlray.evaluation.summary import summary
    from tlray.features.extract import extract
    from tlray.training.fit import fit

    started = time.monotonic()
    out = os.path.abspath(out)
    images, features, model = (os.path.join(out, name) for name in ("images", "features", "model"))
    predictions = os.path.join(out, "predictions.parquet")
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(f"{images}/train/0/0000.png"):
        raise UserError(f"{out} is not empty and holds no demo: choose another --out")
    _say("writing 1,797 handwritten digits as images")
    write_digits(images)
    with session.connect(address):
        _say("extracting their features with VGG16")
        extract(images, features, image_size=_SIZE, address=address)
        _say("training a head")
        accuracy = fit(features, model, address=address).metrics["val_accuracy"]
        _say(f"validation accuracy {accuracy:.3f}; evaluating on the test images")
        evaluation = evaluate(model, features)
        print(f"\n{summary(evaluation)}\n", file=sys.stderr)
        _say("predicting the test images")
        if not os.path.exists(predictions) or os.path.exists(f"{predictions}.parts.json"):
            predict(model, os.path.join(images, "test"), predictions, address=address)
    return DemoResult(
        accuracy=evaluation.accuracy,
        seconds=round(time.monotonic() - started, 1),
        page=os.path.join(model, "report", "index.html"),
        plots=os.path.join(model, "report", "*.png"),
        model=os.path.join(model, "model.keras"),
        features=os.path.join(features, "part-*.parquet"),
        predictions=predictions,
    )


def write_digits(folder: str) -> None:
    """Write the digits as PNG files `SPLIT/DIGIT/NUMBER.png`; three fifths are in the split "train"."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = ("train", "train", "train", "validation", "test")[number % 5]
        path = os.path.join(folder, split, str(digit), f"{number:04d}.png")
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            grey = (pixels * (255 / 16)).round().astype("uint8")
            Image.fromarray(grey).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC).save(path)


def _say(step: str) -> None:
    print(f"demo: {step}", file=sys.stderr, flush=True)
