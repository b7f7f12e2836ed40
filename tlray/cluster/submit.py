"""A tlray command on a Ray cluster: sent there as a job, with what the cluster lacks, and followed."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlray import __version__
from tlray.cluster import wheels
from tlray.cluster.jobs import Job, Jobs, Say, reason
from tlray.core.errors import JobError, UserError

# Not by its script, which is not on the path where tlray comes as a wheel; and not from the current folder,
# which may have a tlray too.
_TLRAY = "python -P -m tlray"
_SECRET = re.compile(r"\w+://[^/@\s]*:[^/@\s]*@")


def submit(
    command: Sequence[str],
    *,
    address: str | None = None,
    name: str | None = None,
    env: Sequence[str] = (),
    wait: bool = True,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run a tlray command on a cluster.

    Args:
        command: its words; or one text that is a line for the shell, in which commands begin with "tlray".
        address: of the cluster's dashboard; without it RAY_API_SERVER_ADDRESS or RAY_ADDRESS has it.
        name: of the job; its id begins with it.
        env: names of environment variables that the job gets as they are here.
        wait: follow the job until it ends.
        say: called with what is done, and with what the job prints.

    Returns:
        `job, address, status, shipped, installed`, and if it was waited for `exit_status, seconds` and
        `result`, the object that the command printed with --json, or None.

    Raises:
        UserError: nothing was sent.
        JobError: the job failed; with the exit status of the command if it had one.
        KeyboardInterrupt: after Ctrl-C; says how to go on, for the job does.
    """
    line, entrypoint = _lines(command)
    values = _values(env)
    if name is None:
        first = re.search(r"\btlray ([a-z]+)", line)
        name = f"tlray-{first[1] if first else 'job'}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"--name {name!r}: expected letters, digits, '.', '_' and '-'")

    def tell(text: str) -> None:
        say(_hide(text, values))

    here = wheels.installed()
    jobs = Jobs(address)
    there = _ask(jobs, [one.name for one in here])
    lacking = wheels.lacking(here, there)
    needed = wheels.needed(lacking, there)
    if lacking:
        tell(f"sent along: {', '.join(f'{one.name} {one.version}' for one in lacking)}\n")
    if needed:
        tell(f"installed there by pip for this job, which takes a while: {', '.join(needed)}\n")
    with tempfile.TemporaryDirectory(prefix="tlray-submit-") as folder:
        environment: dict[str, Any] = {}
        if lacking:
            environment["py_modules"] = [str(one.write(Path(folder))) for one in lacking]
        if needed:
            options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
            environment["pip"] = {"packages": needed, "pip_install_options": options}
        if values:
            environment["env_vars"] = values
        about = {"tlray": __version__, "command": line, "user": getpass.getuser()}
        job = jobs.start(entrypoint, name, environment, about)
    tell(f"job {job.id} on {jobs.address}\n")
    found = {
        "job": job.id,
        "address": jobs.address,
        "status": job.details().status.value.lower(),
        "shipped": [f"{one.name} {one.version}" for one in lacking],
        "installed": needed,
    }
    return {**found, **_follow(job, tell, values)} if wait else found


def _lines(command: Sequence[str]) -> tuple[str, str]:
    """The command as one would type it, and as the shell on the cluster is given it."""
    for word in command:
        if _SECRET.search(word):
            raise UserError(
                "the command has credentials in a URI, and all who use the cluster could read them: "
                "give --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY"
            )
    if len(command) == 1 and re.search(r"\s", command[0]):
        if not re.search(r"\btlray\s", command[0]):
            raise UserError(
                "a command in one pair of quotes is a line for the shell: begin each command in it with "
                "tlray, as in 'tlray extract ... && tlray fit ...'"
            )
        return command[0], f'tlray() {{ {_TLRAY} "$@"; }}; {command[0]}'
    words = shlex.join(command[1:] if command[0] == "tlray" else command)
    return f"tlray {words}", f"{_TLRAY} {words}"


def _values(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if "=" in name:
            raise UserError(
                f"--env {name.partition('=')[0]}=...: give the name alone; the value is taken from here, "
                "so that it stands in no list of processes"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: there is no such environment variable here")
    return {name: os.environ[name] for name in names}


def _hide(text: str, values: Mapping[str, str]) -> str:
    """The text without the values of environment variables that may be secret."""
    for name, value in values.items():
        text = text.replace(value, f"${name}") if len(value) > 5 else text  # Shorter ones are no secrets.
    return text


def _ask(jobs: Jobs, names: Sequence[str]) -> wheels.Cluster:
    """What is installed on the head of the cluster."""
    entrypoint = shlex.join(["python", "-c", wheels.PROBE, *names])
    probe = jobs.start(entrypoint, "tlray-probe", {}, {"command": "what is installed"})
    probe.wait()
    printed = probe.log()
    found = wheels.read_probe(printed)
    if found is None:
        last = printed.strip().rpartition("\n")[2] or "it printed nothing"
        raise JobError(f"the cluster does not tell what is installed on it: {last}")
    return found


def _follow(job: Job, tell: Say, values: Mapping[str, str]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        job.follow(tell)
        ended = job.wait()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"job {job.id} goes on; {job.command('logs')} --follow shows it, {job.command('stop')} ends it"
        ) from error
    if code := ended.driver_exit_code:
        status = code if code > 0 else 128 - code  # Below zero for a signal, as shells have it above 128.
        raise _failed(f"job {job.id}: the command ended with exit status {status}", status)
    if ended.status != "SUCCEEDED":
        raise _failed(f"job {job.id} {ended.status.value.lower()}: {_hide(reason(ended.message), values)}")
    return {
        "status": "succeeded",
        "exit_status": 0,
        "seconds": round(time.monotonic() - started, 1),
        "result": _result(job.log()),
    }


def _failed(message: str, status: int = 1) -> JobError:
    error = JobError(message)
    error.exit_status = status
    return error


def _result(printed: str) -> dict[str, Any] | None:
    try:
        found = json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
