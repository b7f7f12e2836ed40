"""`tlray submit`: a command that runs as a job on a cluster."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from tlray.cli.arguments import Dashboard, option
from tlray.cli.options import Result, command
from tlray.cli.progress import say
from tlray.core.settings import CLUSTER


@command
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="Any tlray command, without the word tlray. Its paths and URIs are those of the cluster. To "
            "run several commands, give one quoted line for the shell, in which each begins with tlray: "
            "'tlray extract IMAGES --out FEATURES && tlray fit FEATURES --out MODEL'.",
        ),
    ],
    address: Dashboard = None,
    name: Annotated[
        str | None,
        option("--name NAME", CLUSTER, "Name of the job; digits are added to it. Default: tlray-COMMAND."),
    ] = None,
    env: Annotated[
        list[str] | None,
        option(
            "--env NAME",
            CLUSTER,
            "Environment variable that the job gets with the value it has here, e.g. "
            "AWS_SECRET_ACCESS_KEY. May be given several times. tlray does not print the value, but everyone "
            "who may use the cluster can read it.",
        ),
    ] = None,
    no_wait: Annotated[
        bool,
        option("--no-wait", CLUSTER, "Return as soon as the job is sent, without waiting for its end."),
    ] = False,
) -> Result:
    """Run any tlray command as a job on a Ray cluster.

    tlray waits for the job and exits with its status. With the job it sends the packages of tlray and of the
    installed plugins, unless the cluster has the same versions. Options of submit come before COMMAND.

    Examples:
        tlray submit -- extract /data/photos --out /data/features
        tlray submit --address http://HEAD:8265 --no-wait -- plan /data/photos
    """
    from tlray.cluster.submit import submit

    printed = partial(say, end="")
    result = submit(words, address=address, name=name, env=env or (), wait=not no_wait, say=printed)
    text = f"job {result['job']}: {result['status']}"
    if no_wait:
        return Result(result, text, f"tlray jobs logs {result['job']} --follow --address {result['address']}")
    return Result(result, f"{text} after {result['seconds']:.1f} s")
