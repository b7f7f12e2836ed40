"""The Ray that a command runs on: a running one, or a local one that lives as long as the command."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tlray.core.errors import JobError, UserError
from tlray.core.runtime import importing, muted

# By default Ray Train polls its workers every 2 s, so a short training ends up to 2 s late.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
_CONNECT_SECONDS = 10
_POLL = 1.0
"""Seconds between two checks that Ray still answers."""
_REFUSED, _LOST = 10, 30
"""What a refused connection counts, and the sum that makes a Ray lost: three refusals in a row, or thirty
attempts without an answer, which take up to 90 seconds."""
_GRACE = 10
"""Seconds in which the block of a lost Ray must end: some calls of Ray only end with the process."""
Connected = Callable[[], None]
"""Waits until this process is connected to Ray; raises UserError if no Ray answers at the address."""
_Place = tuple[str, int]
"""The host and the port at which a process listens."""
_current: Connected | None = None


def _interrupt(error: JobError) -> None:
    os.kill(os.getpid(), signal.SIGINT)


on_loss: Callable[[JobError], None] = _interrupt
"""Called in a thread if Ray ends during the block of `connect`. The default interrupts the block, which then
raises the error. The command line ends its process instead: calls of Ray may not return for a minute."""


def import_ahead(address: str | None) -> None:
    """Import Ray in a thread while the caller does other work before `connect`.

    Ray must not start yet: it then draws from Python's random numbers, as Keras does for seeded weights.
    """
    _prepare(address)
    threading.Thread(target=_import, name="import").start()


def _import() -> None:
    with importing():
        import ray  # noqa: F401


@contextmanager
def connect(address: str | None, *, cpus: int = 2, ahead: bool = True) -> Iterator[Connected]:
    """Connect to the Ray at `address`, or start a local Ray and stop it when the block ends.

    The block begins while Ray still starts. It gets a function that waits until Ray has started, and must
    call it before it uses Ray. If this process is connected to a Ray already, the block uses that one.

    Args:
        address: the address of a running Ray; None for a local one.
        cpus: the least number of CPUs that a local Ray offers, even if the machine has fewer; two suffice
            for the network and one decoding task.
        ahead: start Ray at once; if False, start it when the function is called.
    """
    global _current  # noqa: PLW0603 - a process has one Ray.
    if _current is not None:  # This command is part of another one, which has connected.
        yield _current
        return
    if is_connected():
        yield lambda: None
        return
    _prepare(address)
    starting: Future[None] = Future()
    over = threading.Event()
    lost: list[JobError] = []

    def keep() -> None:
        try:
            _start(address, cpus)
            processes = _processes()
        except BaseException as error:
            starting.set_exception(error)
            return
        starting.set_result(None)
        # This thread stays until the block ends, because the kernel ends Ray's processes with it.
        if (loss := _watch(address, processes, over)) is None:
            sys.modules["ray"].shutdown()
        else:
            lost.append(loss)
            on_loss(loss)
            if not over.wait(_GRACE):
                print(loss, file=sys.stderr, flush=True)
                os._exit(loss.exit_status)

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
    except KeyboardInterrupt as error:
        raise (lost[0] if lost else error) from error
    finally:
        _current = None
        over.set()
        if thread.ident is not None:
            thread.join()


def is_connected() -> bool:
    """Whether this process is connected to a Ray, or is about to be."""
    # The function is missing while another thread still imports Ray.
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", bool)
    return _current is not None or bool(is_initialized())


def has_gpus() -> bool:
    """Whether this process is connected to a Ray that has GPUs; waits until that Ray has started."""
    if not is_connected():
        return False
    if _current is not None:
        _current()
    return bool(sys.modules["ray"].cluster_resources().get("GPU", 0))


def _prepare(address: str | None) -> None:
    """Set the environment variables that Ray reads when it is imported."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise a thread that still fetches results when the command is stopped would start a second Ray.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        **_ENVIRONMENT,
    }
    if address is None:
        settings |= {
            # Nobody reads the metrics of a Ray that lives as long as a command, or preempts its machine.
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            # Workers that start before they are needed would slow down the start of Ray itself.
            "RAY_prestart_worker_first_driver": "0",
            # Ray then listens on the loopback address only, as it does by default on Windows and macOS.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        if "ray" not in sys.modules:
            # Without a token in memory, Ray would write one to the home folder.
            settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if not _debugging():
        # Ray prints an error about the constructor arguments of Ray Data's actor pools (ray#53727).
        settings["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _start(address: str | None, cpus: int) -> None:
    """Connect to a Ray or start one; raises UserError if no Ray answers at the address."""
    options: dict[str, Any] = {"address": address, "runtime_env": {"env_vars": _ENVIRONMENT}}
    if address is None:
        cpus = max(cpus, os.cpu_count() or cpus)
        options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        _check_answers(address)
    with importing():
        import ray

    try:
        with muted():  # Ray announces that it heeds RAY_BACKEND_LOG_LEVEL.
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:
        if address is None:
            raise
        # Ray reports its own search for an address; the cause says whether the token is wrong.
        token = re.search(r"AuthenticationError: (.+)", str(error.__cause__))
        why = token[1] if token else str(error).strip().partition("\n")[0]
        raise UserError(f"no Ray answers at --address {address}: {type(error).__name__}: {why}") from error
    with importing():
        import ray.data
    ray.data.DataContext.get_current().enable_progress_bars = False
    if not _debugging():
        for name in ("ray.data", "ray.train"):  # What they log is raised as well.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _processes() -> dict[str, _Place]:
    """The places of the processes that this one needs of Ray, by what they are called."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    places = {f"its head at {context.gcs_address}": (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            places["its process on this machine"] = node["NodeManagerAddress"], node["NodeManagerPort"]
    return places


def _watch(address: str | None, processes: Mapping[str, _Place], over: threading.Event) -> JobError | None:
    """Wait until `over` is set, and return None; or return the error if a process of Ray ends before."""
    failures: Counter[str] = Counter()
    while not over.wait(_POLL):
        for name, place in processes.items():
            failure = _failure(place)
            failures[name] = failures[name] + failure if failure else 0
            if failures[name] >= _LOST:
                ray = "the local Ray" if address is None else f"the Ray at {address}"
                return JobError(
                    f"{ray} has ended: {name} does not answer; perhaps it was stopped or out of memory. "
                    "Run the same command again to continue"
                )
    return None


def _failure(place: _Place) -> int:
    """Return 0 if a process listens at a host and port, `_REFUSED` if none does, and 1 if nothing answers.

    A busy machine or an interrupted network does not answer for a while, and may then go on.
    """
    try:
        # The contract of plugins forbids `socket.create_connection` to the whole process for a while.
        with socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET) as connection:
            connection.settimeout(2)
            connection.connect(place)
    except ConnectionRefusedError:
        return _REFUSED
    except socket.gaierror:  # This is about the name service, not about Ray.
        return 0
    except OSError as error:  # EMFILE and ENFILE are about this process only.
        return int(error.errno not in (errno.EMFILE, errno.ENFILE))
    return 0


def _check_answers(address: str) -> None:
    """Raise UserError if nothing listens at the address; Ray would try for 14 minutes (since ray#38854)."""
    if "://" in address:
        raise UserError(
            f"--address {address}: this command runs on Ray itself, and takes HEAD:6379 on a machine of the "
            "cluster; from another machine, use `tlray submit --address http://HEAD:8265 -- COMMAND`"
        )
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return  # Ray itself resolves `auto`.
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at --address {address}: {error}; expected HOST:PORT of its head node"
        ) from error


def _debugging() -> bool:
    return logging.getLogger("tlray").isEnabledFor(logging.DEBUG)


def reason(error: BaseException) -> str:
    """The line of a Ray error that says what went wrong in the task or actor."""
    text = str(error).strip()
    lines = re.findall(r"^tlray\.core\.errors\.\w+: (.+)", text, re.M)
    # Ray Data's own error only says that a user-defined function (UDF) failed.
    lines = lines or re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception): (?!UDF).+)", text, re.M)
    return lines[-1] if lines else text.rpartition("\n")[2] or type(error).__name__
