"""The jobs of a Ray cluster, which its dashboard starts, lists, follows and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from tlray.core import private
from tlray.core.errors import JobError, UserError, unknown
from tlray.core.runtime import importing

_POLL = 0.3
"""Seconds between two queries for the status of a job."""
_AGENT_SECONDS = 60
"""Time in which a cluster that has just been started must accept a job."""
_ATTEMPTS = 6
"""Failed connections in a row, with ever longer pauses between them, after which a job is given up."""

Say = Callable[[str], None]
"""Prints a piece of text, which contains its own line ends."""


class Job:
    """One job of a cluster."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self.id = client, job

    def command(self, verb: str) -> str:
        """The command line that does something with the job, e.g. for the verb "stop"."""
        return f"tlray jobs {verb} {self.id} --address {self._client.get_address()}"

    def details(self) -> Any:
        """Ray's `JobDetails` of the job."""
        return self._client.get_job_info(self.id)

    def log(self) -> str:
        """Everything that the job has printed so far."""
        return str(self._client.get_job_logs(self.id))

    def wait(self) -> Any:
        """Wait for the end of the job, and return its details."""
        while not (details := self.details()).status.is_terminal():
            time.sleep(_POLL)
        return details

    def follow(self, say: Say) -> None:
        """Pass on what the job prints until it ends.

        Raises:
            JobError: the connection broke; the job may still be running.
        """
        asyncio.run(self._follow(say))

    async def _follow(self, say: Say) -> None:
        import aiohttp

        printed = failures = 0
        while True:
            position, reason = 0, "the connection ended"
            try:
                async for text in self._client.tail_job_logs(self.id):  # Each time from the log's beginning.
                    new = text[max(0, printed - position) :]
                    position += len(text)
                    if new:
                        printed, failures = position, 0
                        say(new)
                if self.details().status.is_terminal():
                    return
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                reason = str(error)
            failures += 1
            if failures == _ATTEMPTS:
                raise JobError(
                    f"lost the connection to job {self.id} ({reason}); the job may still be running, and "
                    f"{self.command('logs')} --follow shows it"
                )
            await asyncio.sleep(_POLL * 2**failures)

    def stop(self) -> str:
        """Stop the job if it is running, and return its final status."""
        self._client.stop_job(self.id)
        return str(self.wait().status.value.lower())


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str | None, say: Say = lambda text: None) -> None:
        """Connect to the dashboard of a cluster.

        Args:
            address: the address of the dashboard, or of Ray on the same machine, where the dashboard's usual
                port is then tried; None for what RAY_API_SERVER_ADDRESS or RAY_ADDRESS say.
            say: called with messages about what was chosen.

        Raises:
            UserError: no dashboard answers at the address, or it refuses the token.
        """
        try:
            with importing():
                import aiohttp  # noqa: F401 - `follow` needs it, and Ray does not check for it before.
                from ray.exceptions import AuthenticationError
                from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise UserError(f"{error}: to use jobs on a cluster, pip install 'tlray[cluster]'") from error
        if address is not None:
            if (dashboard := _dashboard(address)) != address:
                say(f"--address {address} is not a dashboard's address; trying {dashboard}\n")
                address = dashboard
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers RAY_ADDRESS to its own argument.
        if not logging.getLogger("tlray").isEnabledFor(logging.DEBUG):
            private.silence_job_client()
        where = address or "the address in RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or on this machine"
        try:
            self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise UserError(
                f"the cluster at {where} refuses the token: set RAY_AUTH_MODE=token, and put its token into "
                "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"no Ray dashboard answers at {where}: {reason}; expected its --address, as in http://HEAD:8265"
            ) from error
        self.address: str = self._client.get_address()

    def start(self, entrypoint: str, name: str, environment: dict[str, Any], metadata: dict[str, str]) -> Job:
        """Start a job. Its id begins with the name, and Ray keeps the metadata with it.

        Raises:
            JobError: the cluster does not accept the job, also after `_AGENT_SECONDS`.
        """
        job = f"{name}-{secrets.token_hex(4)}"
        until = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job,
                    # Eager installation would make a node that joins install the packages of all past jobs.
                    runtime_env={**environment, "config": {"eager_install": False}},
                    metadata={"job_name": name, **metadata},
                )
                return Job(self._client, job)
            except RuntimeError as error:
                # The dashboard answers some seconds before the process that starts jobs.
                if "No available agent" not in str(error) or time.monotonic() > until:
                    reason = str(error).strip().partition("\n")[0]
                    raise JobError(
                        f"the cluster at {self.address} does not accept the job: {reason}"
                    ) from error
            time.sleep(_POLL)

    def upload(self, path: str) -> str:
        """Send a zip file of Python packages to the cluster, and return its URI for `py_modules`."""
        return private.upload_package(self._client, path)

    def machines(self) -> set[str]:
        """The addresses of the machines that the cluster's nodes run on."""
        from ray.util.state import list_nodes

        nodes = list_nodes(self.address, limit=10_000, raise_on_missing_output=False)
        return {node.node_ip for node in nodes if node.state == "ALIVE"}

    def list(self) -> list[dict[str, Any]]:
        """The jobs that run a tlray command, whoever submitted them; the newest first."""
        jobs = [
            {
                "job": job.submission_id,
                "status": job.status.value.lower(),
                "started": job.start_time / 1000,
                "seconds": round(((job.end_time or time.time() * 1000) - job.start_time) / 1000, 1),
                "user": (job.metadata or {}).get("user", ""),
                "command": (job.metadata or {}).get("command", job.entrypoint),
            }
            for job in self._client.list_jobs()
            if job.submission_id and job.start_time
        ]
        jobs = [job for job in jobs if re.search(r"\btlray [-a-z]", job["command"])]
        return sorted(jobs, key=lambda job: job["started"], reverse=True)

    def open(self, name: str) -> Job:
        """The job with this id, or the newest with this --name; raises UserError if there is none."""
        jobs = [job for job in self._client.list_jobs() if job.submission_id]
        jobs.sort(key=lambda job: job.start_time or 0)
        ids = [job.submission_id for job in jobs]
        named = {(job.metadata or {}).get("job_name"): job.submission_id for job in jobs}
        if name not in (*ids, *named):
            raise unknown("job", name, ids)
        return Job(self._client, name if name in ids else named[name])


def _dashboard(address: str) -> str:
    """The address of the dashboard on the machine of an address that may be of another part of Ray."""
    is_dashboard = address.startswith(("http://", "https://"))
    return address if is_dashboard else re.sub(r"^(?:ray://)?(.*?)(?::\d+)?/?$", r"http://\1:8265", address)


def reason(message: str | None) -> str:
    """Shorten Ray's message about a failed job to one line."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    # A traceback may follow, with the output of pip; only its errors matter.
    errors = [line for line in lines[1:] if re.match(r"ERROR: |[\w.]+(Error|Exception): ", line)]
    return " ".join([*lines[:1], *errors[-2:]])[:1000]
