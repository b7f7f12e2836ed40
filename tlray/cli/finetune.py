"""`tlray finetune`: the top of the network, trained together with its head."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from tlray.cli.fit import trained
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import Progress, print_epoch
from tlray.core.config import FinetuneConfig


@command
def finetune(
    images: Annotated[
        str, typer.Argument(help="labelled images; or, without --augment, their features at the cut")
    ],
    out: Annotated[str, typer.Option(help="the model to write: a new folder or URI")],
    config: FinetuneConfig,
    run: OnRay,
    model: Annotated[
        str | None, typer.Option(help="the model to start from; without it a new --head on --backbone")
    ] = None,
) -> Result:
    """Train a network from a layer on, together with its head; what lies before that layer is frozen.

    Run again after it was stopped, it goes on from the last epoch.
    """
    from tlray.training.finetune import finetune

    with ExitStack() as shown:
        progress = shown.enter_context(Progress("images"))

        def epoch(metrics: dict[str, float]) -> None:
            shown.close()  # The images were gone through.
            print_epoch(metrics, config.epochs)

        result = finetune(
            images, out, config, model=model, address=run.address, progress=progress, report=epoch
        )
    return trained(result, out)
