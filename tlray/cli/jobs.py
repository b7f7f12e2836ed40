"""`tlray jobs`: what was submitted to a cluster."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from tlray.cli.arguments import Dashboard
from tlray.cli.options import Result, command

app = typer.Typer(name="jobs", help="What was submitted to a cluster.", no_args_is_help=True)
_Id = Annotated[str, typer.Argument(help="of a job, as `tlray submit` and `tlray jobs list` print it")]


def _list(address: Dashboard = None) -> Result:
    """List the jobs that tlray has sent, the newest first."""
    from tlray.cluster.jobs import Jobs

    found = Jobs(address).list()
    rows = [
        (
            job["job"],
            job["status"],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(job["started"])),
            f"{job['seconds']:,.0f} s",
            job["user"],
        )
        for job in found
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    lines = [
        "  ".join([*map(str.ljust, row, widths), job["command"]])
        for row, job in zip(rows, found, strict=True)
    ]
    return Result({"jobs": found}, "\n".join(lines) or "tlray has sent no jobs to this cluster")


def _logs(
    job: _Id,
    address: Dashboard = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on until it ends")] = False,
) -> Result:
    """Print what a job has printed."""
    from tlray.cluster.jobs import Jobs

    found = Jobs(address).open(job)

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    if follow:
        found.follow(say)
    status = found.details().status.value.lower()
    log = found.log()
    return Result(
        {"job": job, "status": status, "log": log}, f"job {job} {status}" if follow else log.rstrip()
    )


def _stop(job: _Id, address: Dashboard = None) -> Result:
    """Stop a job; the same command, submitted again, goes on where it was."""
    from tlray.cluster.jobs import Jobs

    status = Jobs(address).open(job).stop()
    return Result({"job": job, "status": status}, f"job {job} {status}")


app.command("list")(command(_list))
app.command("logs")(command(_logs))
app.command("stop")(command(_stop))
