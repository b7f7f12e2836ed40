"""The jobs of a Ray cluster, as its dashboard has them: started, listed, followed and stopped."""

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
_ATTEMPTS = 6
"""How often in a row the connection may break, with ever longer pauses, before a job is given up."""

Say = Callable[[str], None]
"""Called with text as it comes, its line ends included."""


class Job:
    """One job."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self.id = client, job

    def command(self, what: str) -> str:
        """The command line that does something with it, e.g. "stop"."""
        return f"tlray jobs {what} {self.id} --address {self._client.get_address()}"

    def details(self) -> Any:
        """Ray's `JobDetails`."""
        return self._client.get_job_info(self.id)

    def log(self) -> str:
        """All it has printed until now."""
        text: str = self._client.get_job_logs(self.id)
        return text

    def wait(self) -> Any:
        """The details when it has ended."""
        while not (details := self.details()).status.is_terminal():
            time.sleep(_POLL)
        return details

    def follow(self, say: Say) -> None:
        """Hand on what it prints until it ends.

        Raises:
            JobError: the connection broke, and the job with it, or it goes on without us.
        """
        asyncio.run(self._follow(say))

    async def _follow(self, say: Say) -> None:
        import aiohttp

        seen = broken = 0
        while True:
            position, reason = 0, "the connection ended"
            try:
                async for text in self._client.tail_job_logs(self.id):  # From its beginning, each time.
                    new = text[max(0, seen - position) :]
                    position += len(text)
                    if new:
                        seen, broken = position, 0
                        say(new)
                if self.details().status.is_terminal():
                    return
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                reason = str(error)
            broken += 1
            if broken == _ATTEMPTS:
                raise JobError(
                    f"job {self.id} is not heard of any more ({reason}); it may go on, and then "
                    f"{self.command('logs')} --follow shows it"
                )
            await asyncio.sleep(_POLL * 2**broken)

    def stop(self) -> str:
        """Stop it if it runs; returns its status in the end."""
        self._client.stop_job(self.id)
        status: str = self.wait().status.value.lower()
        return status


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str | None) -> None:
        """Connect to a dashboard.

        Raises:
            UserError: nobody answers at the address, or it wants another token.
        """
        try:
            with importing():
                import aiohttp  # noqa: F401 - what follows a job needs it, and Ray tells that late.
                from ray.exceptions import AuthenticationError
                from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise UserError(f"{error}: to use a cluster's jobs, pip install 'tlray[cluster]'") from error
        if address is not None:
            if "://" not in address:
                raise UserError(f"--address {address}: expected the dashboard's, as in http://HEAD:8265")
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would prefer RAY_ADDRESS to an argument.
        if not logging.getLogger("tlray").isEnabledFor(logging.DEBUG):
            private.silence_job_client()
        where = address or "the address of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or on this machine"
        try:
            self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise UserError(
                f"the cluster at {where} wants another token: set RAY_AUTH_MODE=token, and put the token "
                "into RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"no Ray dashboard answers at {where}: {reason}") from error
        self.address: str = self._client.get_address()

    def start(self, entrypoint: str, name: str, environment: dict[str, Any], about: dict[str, str]) -> Job:
        """Start a job whose id begins with the name; `about` is kept with it."""
        job = f"{name}-{secrets.token_hex(4)}"
        self._client.submit_job(
            entrypoint=entrypoint,
            submission_id=job,
            # Or a node that joins installs for all jobs there ever were, at once, and wheels that they share
            # into each other's way: then the node has them for installed, and they are not there.
            runtime_env={**environment, "config": {"eager_install": False}},
            metadata={"job_name": name, **about},
        )
        return Job(self._client, job)

    def list(self) -> list[dict[str, Any]]:
        """Those that run a tlray command, also when something else has sent them; the newest first."""
        found = [
            {
                "job": one.submission_id,
                "status": one.status.value.lower(),
                "started": one.start_time / 1000,
                "seconds": round(((one.end_time or time.time() * 1000) - one.start_time) / 1000, 1),
                "user": (one.metadata or {}).get("user", ""),
                "command": (one.metadata or {}).get("command", one.entrypoint),
            }
            for one in self._client.list_jobs()
            if one.submission_id and one.start_time
        ]
        found = [one for one in found if re.search(r"\btlray [-a-z]", one["command"])]
        return sorted(found, key=lambda one: one["started"], reverse=True)

    def open(self, job: str) -> Job:
        """One by its id. Raises UserError if there is none."""
        known = [one.submission_id for one in self._client.list_jobs() if one.submission_id]
        if job not in known:
            raise unknown("job", job, known)
        return Job(self._client, job)


def reason(message: str | None) -> str:
    """What Ray says of a job that failed, in one line."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    # Of a traceback with what pip has printed, the errors.
    errors = [line for line in lines[1:] if re.match(r"ERROR: |[\w.]+(Error|Exception): ", line)]
    return " ".join([*lines[:1], *errors[-2:]])[:1000]
