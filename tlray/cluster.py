"""The Ray a command runs on: one that exists, or a local one that lives as long as the command."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tlray.errors import UserError
from tlray.runtime import muted

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Ray Train looks after its workers every two seconds, and learns of their end so late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


@contextmanager
def connect(address: str | None, *, cpus: int = 2) -> Iterator[None]:
    """Connect to the Ray at `address`, or start a local one and stop it at the end.

    A Ray that this process is connected to already is used, and left as it is.

    Args:
        address: of a running Ray.
        cpus: what a local Ray must be able to run at once, even if it has fewer; by default the
            network and one task that decodes.

    Raises:
        UserError: there is no Ray at that address.
    """
    settings = {"RAY_USAGE_STATS_ENABLED": "0", **_ENVIRONMENT}
    if address is None and "ray" not in sys.modules:  # Ray reads it when it is imported.
        # A token of its own, in memory: Ray would write one to the home folder.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    quiet = not logging.getLogger("tlray").isEnabledFor(logging.DEBUG)
    if quiet:
        # Ray prints an error about the constructor arguments of Ray Data's actor pools (ray#53727).
        settings["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    if quiet:
        for name in ("ray.data", "ray.train"):  # What fails is raised as well.
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(cpus, os.cpu_count() or cpus),
        "include_dashboard": False,
    }
    running: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": _ENVIRONMENT}}
    try:
        with muted():  # Ray tells that it heeds RAY_BACKEND_LOG_LEVEL.
            ray.init(**(running if address else local), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:
        if address is None:
            raise
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"no Ray answers at --address {address}: {type(error).__name__}: {why}") from error
    try:
        yield
    finally:
        ray.shutdown()


def reason(error: BaseException) -> str:
    """The one line of a Ray error that says what went wrong in the task or actor."""
    text = str(error).strip()
    found = re.findall(r"^tlray\.errors\.\w+: (.+)", text, re.M)
    # Ray Data's own wrapper says nothing but that a function failed.
    found = found or re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception): (?!UDF).+)", text, re.M)
    return found[-1] if found else text.rpartition("\n")[2] or type(error).__name__
