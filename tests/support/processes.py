"""The command line in a process of its own, and what it leaves behind."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def of_session(session: int) -> list[str]:
    """Command lines of the processes of a session, read from /proc."""
    commands = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                commands.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):
            continue
    return commands
