"""The Ray a command runs on: one that exists, or a local one that lives as long as the command."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tlray.core.errors import UserError
from tlray.core.runtime import importing, muted

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Ray Train looks after its workers every two seconds, and learns of their end so late.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}

_LOCAL = {
    # Nobody looks at the metrics of a Ray that lives as long as a command, or takes its machine away.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Workers that come up before they are needed are in the way of what Ray itself has to start.
    "RAY_prestart_worker_first_driver": "0",
    # On every system, as Ray does on those: listen on the loopback address, and on no other.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
_ANSWER_SECONDS = 10
Connected = Callable[[], None]
"""Waits until Ray is there; raises UserError if there is none at the address."""
_current: Connected | None = None


def import_ahead(address: str | None) -> None:
    """Begin to import Ray, beside what a job is checked for; call before `connect`.

    Not more: Ray, as it starts, draws from Python's random numbers, and so does Keras for weights of a seed.
    """
    _prepare(address)
    threading.Thread(target=_import, name="import").start()


def _import() -> None:
    with importing():
        import ray  # noqa: F401


@contextmanager
def connect(address: str | None, *, cpus: int = 2, ahead: bool = True) -> Iterator[Connected]:
    """Connect to the Ray at `address`, or start a local one and stop it at the end.

    The block begins while Ray still starts, for what can be done meanwhile; it is given a function that
    must be called before Ray is used, and waits until it is there. A Ray that this process is connected to
    already is used, and left as it is.

    Args:
        address: of a running Ray.
        cpus: what a local Ray must be able to run at once, even if it has fewer; by default the
            network and one task that decodes.
        ahead: start at once; if not, only when the function is called.
    """
    global _current  # noqa: PLW0603 - there is one Ray for a process.
    if _current is not None:  # Of the command that this one is a part of.
        yield _current
        return
    if is_connected():
        yield lambda: None
        return
    _prepare(address)
    starting: Future[None] = Future()
    over = threading.Event()

    def keep() -> None:
        try:
            _start(address, cpus)
        except BaseException as error:
            starting.set_exception(error)
            return
        starting.set_result(None)
        over.wait()  # The kernel ends Ray's processes together with the thread that started them.
        sys.modules["ray"].shutdown()

    thread = threading.Thread(target=keep, name="ray", daemon=True)

    def connected() -> None:
        if thread.ident is None:
            thread.start()
        starting.result()

    if ahead:
        thread.start()
    _current = connected
    try:
        yield connected
    finally:
        _current = None
        over.set()
        if thread.ident is not None:
            thread.join()


def is_connected() -> bool:
    """Whether this process is connected to a Ray, or about to be."""
    # While another thread still imports Ray, it does not have the function yet.
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", bool)
    return _current is not None or bool(is_initialized())


def has_gpus() -> bool:
    """Whether the Ray that this process is connected to has GPUs; waits for it to start."""
    if not is_connected():
        return False
    if _current is not None:
        _current()
    return bool(sys.modules["ray"].cluster_resources().get("GPU", 0))


def _prepare(address: str | None) -> None:
    """Set what Ray reads when it is imported."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", **_ENVIRONMENT}
    # Or a thread that still asks for results when a command is stopped would start another Ray.
    settings["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if address is None:
        settings |= _LOCAL
    if address is None and "ray" not in sys.modules:
        # A token of its own, in memory: Ray would write one to the home folder.
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if not _debugging():
        # Ray prints an error about the constructor arguments of Ray Data's actor pools (ray#53727).
        settings["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _start(address: str | None, cpus: int) -> None:
    """Connect. Raises UserError if there is no Ray at that address."""
    if address is not None:
        _check_answers(address)
    with importing():
        import ray

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
        # That the token is wrong stands below Ray's own attempts to find an address.
        token = re.search(r"AuthenticationError: (.+)", str(error.__cause__))
        why = token[1] if token else str(error).strip().partition("\n")[0]
        raise UserError(f"no Ray answers at --address {address}: {type(error).__name__}: {why}") from error
    with importing():
        import ray.data
    ray.data.DataContext.get_current().enable_progress_bars = False
    if not _debugging():
        for name in ("ray.data", "ray.train"):  # What fails is raised as well.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_answers(address: str) -> None:
    """Raise UserError if nothing listens there: Ray itself would try for 14 minutes (since ray#38854)."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return  # `auto`, or a URI: Ray finds out what it means.
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at --address {address}: {error}; expected HOST:PORT of its head"
        ) from error


def _debugging() -> bool:
    return logging.getLogger("tlray").isEnabledFor(logging.DEBUG)


def reason(error: BaseException) -> str:
    """The one line of a Ray error that says what went wrong in the task or actor."""
    text = str(error).strip()
    found = re.findall(r"^tlray\.core\.errors\.\w+: (.+)", text, re.M)
    # Ray Data's own wrapper says nothing but that a function failed.
    found = found or re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception): (?!UDF).+)", text, re.M)
    return found[-1] if found else text.rpartition("\n")[2] or type(error).__name__
