"""`tlray evaluate`: an honest score, and the worst mistakes."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.arguments import Model
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.core.config import EvaluateConfig


@command
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="labelled images, or a feature set of the same provenance")],
    config: EvaluateConfig,
    run: OnRay,
    out: Annotated[str | None, typer.Option(help="folder of the report; MODEL/report if not given")] = None,
) -> Result:
    """Loss, accuracy, precision and recall of each class, the confusion matrix and the worst mistakes."""
    from tlray.evaluation.evaluate import evaluate
    from tlray.evaluation.summary import summary

    with Progress("evaluating") as progress:
        found = evaluate(model, data, config, out=out, address=run.address, progress=progress)
    report = out or f"{model.rstrip('/')}/report"
    return Result(found, f"{summary(found)}\n\nreport: {report}/index.html")
