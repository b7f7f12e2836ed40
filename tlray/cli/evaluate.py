"""`tlray evaluate`: the scores of a model, and its worst mistakes."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from tlray.cli.arguments import Model, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.core.config import EvaluateConfig
from tlray.core.settings import OUTPUT


@command
def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES|FEATURES",
            help="Labelled images, in any form that `tlray extract` takes; or a feature set that was "
            "extracted with the network, weights, image size, --cut and other options of the model.",
        ),
    ],
    config: EvaluateConfig,
    run: OnRay,
    out: Annotated[
        str | None,
        option(
            "--out FOLDER", OUTPUT, "Folder or URI for the report. Default: `report` in the model's folder."
        ),
    ] = None,
) -> Result:
    """Measure how often a model is right on labelled images, and write a report.

    The report is a web page with loss, accuracy, precision and recall of each class, the confusion matrix and
    the worst mistakes.

    Examples:
        tlray evaluate model test-photos/
        tlray evaluate model features --split test
    """
    from tlray.evaluation.evaluate import evaluate
    from tlray.evaluation.summary import summary

    with Progress("evaluating") as progress:
        result = evaluate(model, data, config, out=out, address=run.address, progress=progress)
    report = out or f"{model.rstrip('/')}/report"
    now = f"{shlex.join(['tlray', 'predict', model])} IMAGES --out predictions.parquet"
    return Result(result, f"{summary(result)}\n\nreport: {report}/index.html", now)
