"""`tlray predict`: what is on the pictures."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tlray.cli.arguments import Images, Model
from tlray.cli.extract import summary
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
    from tlray.core.errors import UserError
    from tlray.evaluation.predict import predict, predict_one
    from tlray.images.filetypes import is_image

    if out is None:
        if not is_image(images) or os.path.isdir(images):
            raise UserError("--out is missing: expected a .parquet or .csv file to write the predictions to")
        one = predict_one(model, images, config)
        lines = [f"{100 * value:5.1f} %  {label}" for label, value in one["probabilities"].items()]
        return Result(one, "\n".join(lines))
    with Progress("predicting") as progress:
        found = predict(model, images, out, config, address=run.address, progress=progress)
    return Result(found, summary(found, "predictions"))
