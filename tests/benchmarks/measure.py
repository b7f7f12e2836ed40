"""Runs a command and tells its seconds, result, time to the first file, and the memory of its processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Run:
    """A command that has ended."""

    seconds: float
    output: str
    first: float = float("nan")
    """Seconds until there was a file in the folder that was watched."""
    peaks: dict[str, float] = field(default_factory=dict)
    """Largest private memory of a process, MB: of the driver, an actor, and a task."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of all processes of each of these kinds, as far as they were seen."""

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.output))


def python(
    *arguments: object, watch: Path | None = None, memory: bool = False, until_first: bool = False
) -> Run:
    """Run Python with these arguments.

    Args:
        arguments: of the interpreter.
        watch: a feature set that is written.
        memory: look at the processes, which costs a part of a core.
        until_first: stop the command, as Ctrl-C does, when its first part is there.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=output, stderr=subprocess.DEVNULL, env=environment
        )
        run = Run(0, "")
        over = threading.Event()
        watching = threading.Thread(target=_watch, args=(run, process.pid, watch, memory, started, over))
        watching.start()
        while process.poll() is None:
            time.sleep(0.05)
            if until_first and run.first == run.first:
                process.send_signal(signal.SIGINT)
                process.wait()
        run.seconds = time.perf_counter() - started
        over.set()
        watching.join()
        output.seek(0)
        run.output = output.read()
    if process.returncode and not until_first:
        raise RuntimeError(f"{arguments} ended with {process.returncode}: {run.output}")
    return run


def tlray(*arguments: object, **options: Any) -> Run:
    """Run tlray with these arguments and --json; options as of `python`."""
    return python("-m", "tlray", *arguments, "--json", **options)


def _watch(
    run: Run, pid: int, watch: Path | None, memory: bool, started: float, over: threading.Event
) -> None:
    seconds: dict[int, float] = {}
    while not over.wait(0.1):
        if watch is not None and run.first != run.first and next(watch.glob("part-*"), None):
            run.first = time.perf_counter() - started
        try:
            driver = psutil.Process(pid)
            processes = [driver, *driver.children(recursive=True)] if memory else []
        except psutil.Error:
            continue
        for process in processes:
            try:
                used, times, name = process.memory_info(), process.cpu_times(), _kind(process, pid)
            except psutil.Error:
                continue
            private = (used.rss - used.shared) / 1e6
            run.peaks[name] = max(private, run.peaks.get(name, 0))
            spent = times.user + times.system
            run.cpu[name] = run.cpu.get(name, 0) + spent - seconds.get(process.pid, 0)
            seconds[process.pid] = spent


def _kind(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    line = " ".join(process.cmdline())
    if "MapWorker" in line:
        return "actor"
    return "task" if line.startswith("ray::") and "Map" in line else "other"
