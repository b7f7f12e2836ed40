"""The command line in a process of its own, and what it leaves behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil


def tlray(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start the command line."""
    command = [sys.executable, "-m", "tlray", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition: Callable[[], Any], why: Callable[[], str] = str, seconds: float = 180) -> None:
    """Until it is true; `why` tells what there is if that takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, why() or "it did not happen in time"
        time.sleep(0.05)


def title(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def of_session(*sessions: int) -> list[psutil.Process]:
    """The processes of these sessions that run."""
    running = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) in sessions:
                running.append(process)
    return running


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
