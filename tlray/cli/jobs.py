"""`tlray jobs`: the jobs that were submitted to a cluster."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from tlray.cli.arguments import Dashboard, option
from tlray.cli.options import Result, group
from tlray.cli.progress import say
from tlray.cli.tables import table
from tlray.core.settings import OUTPUT

_Id = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="The job, as `tlray submit` and `tlray jobs list` print it; or its --name, which means the "
        "newest job of this name.",
    ),
]


def _list(address: Dashboard = None) -> Result:
    """List the jobs that tlray has sent to a cluster, the newest first.

    Examples:
        tlray jobs list --address http://HEAD:8265
    """
    from tlray.cluster.jobs import Jobs

    jobs = Jobs(address, partial(say, end="")).list()
    rows = [
        (
            job["job"],
            job["status"],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(job["started"])),
            f"{job['seconds']:,.0f} s",
            job["user"],
            job["command"],
        )
        for job in jobs
    ]
    return Result({"jobs": jobs}, table(rows) or "this cluster has no jobs of tlray")


def _logs(
    job: _Id,
    address: Dashboard = None,
    follow: Annotated[
        bool, option("--follow", OUTPUT, "Keep printing what the job prints until it ends.")
    ] = False,
) -> Result:
    """Print what a job has printed.

    Examples:
        tlray jobs logs nightly --follow
    """
    from tlray.cluster.jobs import Jobs

    opened = Jobs(address, partial(say, end="")).open(job)
    if follow:
        opened.follow(partial(say, end=""))
    status, log = opened.details().status.value.lower(), opened.log()
    text = f"job {opened.id}: {status}" if follow else log.rstrip()
    return Result({"job": opened.id, "status": status, "log": log}, text)


def _stop(job: _Id, address: Dashboard = None) -> Result:
    """Stop a job.

    Submit the same command again to continue it.

    Examples:
        tlray jobs stop tlray-extract-0a1b2c3d
    """
    from tlray.cluster.jobs import Jobs

    opened = Jobs(address, partial(say, end="")).open(job)
    status = opened.stop()
    return Result({"job": opened.id, "status": status}, f"job {opened.id}: {status}")


app = group(
    "jobs",
    "List the jobs that were sent by `tlray submit`, show their logs, and stop them.",
    _list,
    _logs,
    _stop,
)
