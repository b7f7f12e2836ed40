"""`tlray submit`: a command on a cluster."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tlray.cli.arguments import Dashboard
from tlray.cli.options import Result, command


@command
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            help="any tlray command, after --; its paths and URIs are those of the cluster. In one pair of "
            "quotes it is a line for the shell: 'tlray extract ... && tlray fit ...'",
        ),
    ],
    address: Dashboard = None,
    name: Annotated[
        str | None, typer.Option(help="of the job, to find it by; that of the command by default")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="an environment variable that the job gets as it is here, e.g. AWS_SECRET_ACCESS_KEY; may "
            "be given several times. tlray does not print it, but who may use the cluster can read it",
        ),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="end when it is sent, not with its exit status when it ends")
    ] = False,
) -> Result:
    """Run a command on a Ray cluster as a job, with the tlray and the plugins that are installed here.

    What the cluster has in the same versions is not sent along.
    """
    from tlray.cluster.submit import submit

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    found = submit(words, address=address, name=name, env=env or (), wait=not no_wait, say=say)
    took = "" if no_wait else f" in {found['seconds']:.1f} s"
    return Result(found, f"job {found['job']} {found['status']}{took}")
