"""`tlray fit`: a model whose head is trained on features."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING

from tlray.cli import summaries
from tlray.cli.arguments import Features, NewModel
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import print_epoch, say
from tlray.core.config import FitConfig

if TYPE_CHECKING:
    from tlray.training.model_folder import TrainResult


@command
def fit(features: Features, out: NewModel, config: FitConfig, run: OnRay) -> Result:
    """Train a head, which is a small classifier, on a feature set.

    Run the same command again to continue a job that was stopped.

    Examples:
        tlray fit features --out model
        tlray fit features --head linear --epochs 100 --early-stopping 5 --out model
    """
    from tlray.training.fit import fit

    report = partial(print_epoch, epochs=config.epochs)
    result = fit(features, out, config, address=run.address, report=report)
    return trained(result, out)


def trained(result: TrainResult, out: str) -> Result:
    """The result of a command that trains, as text and with the next step."""
    for warning in result.warnings:
        say(f"warning: {warning}")
    lines = [*([summaries.COMPLETE] if result.was_complete else []), *summaries.training(result)]
    lines += summaries.errors(result.first_errors, result.errors, result.errors_uri)
    now = f"{shlex.join(['tlray', 'evaluate', out])} IMAGES"
    return Result(result, "\n".join([*lines, f"model: {result.out}"]), now)
