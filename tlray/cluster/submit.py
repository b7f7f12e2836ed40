"""Runs a tlray command as a job on a Ray cluster, with the packages that the cluster lacks."""

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
from tlray.core.text import has_credentials

# Where tlray was sent with the job, its script is not on the path. -P ignores a tlray in the current folder.
_TLRAY = "python -P -m tlray"


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
        command: the words of the command; or a single line for the shell, whose commands begin with "tlray".
        address: the address of the cluster's dashboard; None for RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.
        name: the beginning of the job's id; None for "tlray-COMMAND".
        env: names of environment variables that the job gets with their values in this process.
        wait: whether to follow the job until it ends.
        say: called with messages about the progress, and with everything that the job prints.

    Returns:
        `job, address, status, shipped, installed`; if the job was followed also `exit_status, seconds` and
        `result`, the object that the command printed because of --json, or None.

    Raises:
        UserError: the job was not sent.
        JobError: the job failed; it has the exit status of the command if there is one.
        KeyboardInterrupt: after Ctrl-C; the job keeps running, and the message says how to see and stop it.
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

    jobs = Jobs(address, tell)
    lacking, needed = _packages(jobs, line, tell)
    shipped = [f"{package.name} {package.version}" for package in lacking]
    environment: dict[str, Any] = {"env_vars": values} if values else {}
    if needed:
        tell(f"packages that pip installs for the job, which takes a while: {', '.join(needed)}\n")
        options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
        environment["pip"] = {"packages": needed, "pip_install_options": options}
    if lacking:
        tell(f"packages sent with the job: {', '.join(shipped)}\n")
        with tempfile.TemporaryDirectory(prefix="tlray-submit-") as folder:
            bundle = wheels.bundle(lacking, Path(folder, "packages.zip"))
            environment["py_modules"] = [jobs.upload(str(bundle))]
    metadata = {"tlray": __version__, "command": line, "user": getpass.getuser()}
    job = jobs.start(entrypoint, name, environment, metadata)
    tell(f"job {job.id} was sent; its page in the dashboard is {jobs.address}/#/jobs/{job.id}\n")
    sent = {"job": job.id, "address": jobs.address, "shipped": shipped, "installed": needed}
    outcome = _follow(job, tell, values) if wait else {"status": job.details().status.value.lower()}
    return {**sent, **outcome}


def _lines(command: Sequence[str]) -> tuple[str, str]:
    """The command as a user types it, and as the shell of the cluster runs it."""
    if has_credentials(" ".join(command)):
        raise UserError(
            "the command contains credentials, which every list of jobs would show: set them in the "
            "environment, and give --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY"
        )
    if len(command) == 1 and re.search(r"\s", command[0]):
        if not re.search(r"\btlray\s", command[0]):
            raise UserError(
                "a quoted command is a line for the shell: begin each command in it with tlray, as in "
                "'tlray extract ... && tlray fit ...'"
            )
        return command[0], f'tlray() {{ {_TLRAY} "$@"; }}; {command[0]}'
    words = shlex.join(command[1:] if command[0] == "tlray" else command)
    return f"tlray {words}", f"{_TLRAY} {words}"


def _values(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if "=" in name:
            raise UserError(
                f"--env {name.partition('=')[0]}=...: give the name alone; tlray takes the value from the "
                "environment, because others can see the words of a command"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: there is no such environment variable here")
    return {name: os.environ[name] for name in names}


def _hide(text: str, values: Mapping[str, str]) -> str:
    """Replace the values of environment variables, which may be secret, by their names."""
    for name, value in values.items():
        text = text.replace(value, f"${name}") if len(value) > 5 else text  # A shorter value is no secret.
    return text


def _packages(jobs: Jobs, line: str, tell: Say) -> tuple[list[wheels.Package], list[str]]:
    """The packages that the job needs and the cluster lacks, and the requirements that pip must install."""
    packages = wheels.installed()
    cluster = _ask(jobs, list(packages))
    # A worker on another machine may have another state of a package than the head.
    local = wheels.here(packages) if len(jobs.machines()) == 1 else None
    identities = local.identities if local else {}
    lacking: list[wheels.Package] = []
    for name, package in packages.items():
        if name in identities and identities[name] == cluster.identities.get(name):
            continue
        try:
            if (sent := wheels.lacking(name, package, cluster)) is not None:
                wheels.needed([*lacking, sent], cluster)
                lacking.append(sent)
        except UserError as error:
            plugins = "|".join(map(re.escape, wheels.plugins(package)))
            if name == "tlray" or re.search(rf"\b({plugins})\b", line):
                raise
            tell(f"{name} is not sent with the job, which does not name its plugins: {error}\n")
    return lacking, wheels.needed(lacking, cluster)


def _ask(jobs: Jobs, names: Sequence[str]) -> wheels.Cluster:
    """Find out what is installed on the head node of the cluster."""
    entrypoint = shlex.join(["python", "-c", wheels.PROBE, *names])
    probe = jobs.start(entrypoint, "tlray-probe", {}, {"command": "list the installed packages"})
    probe.wait()
    printed = probe.log()
    cluster = wheels.read_probe(printed)
    if cluster is None:
        last = printed.strip().rpartition("\n")[2] or "it printed nothing"
        raise JobError(f"the job {probe.id}, which lists the packages of the cluster, failed: {last}")
    return cluster


def _follow(job: Job, tell: Say, values: Mapping[str, str]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        job.follow(tell)
        details = job.wait()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"job {job.id} keeps running; see it with {job.command('logs')} --follow, or stop it with "
            f"{job.command('stop')}"
        ) from error
    if code := details.driver_exit_code:
        status = code if code > 0 else 128 - code  # Ray reports signal N as -N; shells report it as 128 + N.
        failure = JobError(f"job {job.id}: the command ended with exit status {status}")
        failure.exit_status = status
        raise failure
    if details.status != "SUCCEEDED":
        message = _hide(reason(details.message), values)
        raise JobError(f"job {job.id} {details.status.value.lower()}: {message}")
    return {
        "status": "succeeded",
        "exit_status": 0,
        "seconds": round(time.monotonic() - started, 1),
        "result": _result(job.log()),
    }


def _result(printed: str) -> dict[str, Any] | None:
    """The JSON object in the last line that the command printed; None if there is none."""
    try:
        values = json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
