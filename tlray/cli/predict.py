"""`tlray predict`: the predicted class of each image."""

from __future__ import annotations

from typing import Annotated

from tlray.cli import summaries
from tlray.cli.arguments import Images, Model, option
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress
from tlray.core.config import PredictConfig
from tlray.core.settings import OUTPUT


@command
def predict(
    model: Model,
    images: Images,
    config: PredictConfig,
    run: OnRay,
    out: Annotated[
        str | None,
        option(
            "--out FILE",
            OUTPUT,
            "File or URI to write the predictions to; its name ends with .parquet or .csv. Default: the "
            "prediction is printed, which works for a single image only.",
        ),
    ] = None,
) -> Result:
    """Predict the class of every image, and write a table with the probabilities.

    Examples:
        tlray predict model photos/ --out predictions.parquet
        tlray predict model photo.jpg
    """
    from tlray.evaluation.predict import predict

    if out is None:
        image = predict(model, images, config=config)
        lines = [f"{100 * value:5.1f} %  {label}" for label, value in image.probabilities.items()]
        return Result(image, "\n".join(lines))
    with Progress("predicting") as progress:
        result = predict(model, images, out, config, address=run.address, progress=progress)
    lines = summaries.counts(result)
    lines += summaries.errors(result.first_errors, result.errors, result.errors_uri)
    return Result(result, "\n".join([*lines, f"predictions: {result.out}"]))
