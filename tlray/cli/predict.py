"""`tlray predict`: what is on the pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli import summaries
from tlray.cli.arguments import Images, Model
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.core.config import PredictConfig


@command
def predict(
    model: Model,
    images: Images,
    config: PredictConfig,
    run: OnRay,
    out: Annotated[
        str | None, typer.Option(help="a .parquet or .csv file to write; not needed for a single image")
    ] = None,
) -> Result:
    """Class and probabilities of every image, as one table; one single image is answered at once."""
    from tlray.evaluation.predict import predict

    if out is None:
        one = predict(model, images, config=config)
        lines = [f"{100 * value:5.1f} %  {label}" for label, value in one.probabilities.items()]
        return Result(one, "\n".join(lines))
    with Progress("predicting") as progress:
        result = predict(model, images, out, config, address=run.address, progress=progress)
    lines = summaries.counts(result)
    lines += summaries.errors(result.first_errors, result.errors, result.errors_uri)
    return Result(result, "\n".join([*lines, f"predictions: {result.out}"]))
