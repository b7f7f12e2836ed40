"""`tlray finetune`: a model whose upper layers are trained on images."""

from __future__ import annotations

from typing import Annotated

import typer

from tlray.cli.arguments import NewModel, option
from tlray.cli.fit import trained
from tlray.cli.options import OnRay, Result, command
from tlray.cli.progress import AccountPrinter, Progress, print_epoch
from tlray.core.config import FinetuneConfig
from tlray.core.settings import NETWORK


@command
def finetune(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="Labelled images, in any form that `tlray extract` takes; or, without --augment, a feature "
            "set whose `tlray extract --cut` names the layer just before --from.",
        ),
    ],
    out: NewModel,
    config: FinetuneConfig,
    run: OnRay,
    model: Annotated[
        str | None,
        option(
            "--model MODEL",
            NETWORK,
            "Model to start from, made by `tlray fit` or `tlray finetune`. Default: a new --head on the "
            "--backbone.",
        ),
    ] = None,
) -> Result:
    """Train the upper layers of a network together with its head, on images.

    The layers before --from stay as they are; without --from and --model, only the head is trained. Run the
    same command again to continue a job that was stopped: it goes on after the last finished epoch.

    Examples:
        tlray finetune photos/ --model model --from block5_conv1 --out tuned
        tlray finetune photos/ --head linear --augment light --out tuned
    """
    from tlray.training.finetune import finetune

    with Progress("images") as progress:

        def report(metrics: dict[str, float]) -> None:
            progress.close()  # No pass over the images follows an epoch.
            print_epoch(metrics, config.epochs)

        result = finetune(
            images,
            out,
            config,
            model=model,
            address=run.address,
            progress=progress,
            announce=AccountPrinter(),
            report=report,
        )
    return trained(result, out)
