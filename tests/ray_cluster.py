"""A real Ray of several nodes on this machine: a `ray start` for each, with its own ports and folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

BIN = Path(sys.executable).parent


@dataclass
class RayCluster:
    """Nodes that can come and go; the first is the head, with the dashboard."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = 0
    dashboard: str = ""

    @property
    def address(self) -> str:
        """For `--address` of the commands that run on Ray."""
        return f"127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster; and, as on other machines, no path to this checkout."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        path = f"{BIN}{os.pathsep}{outer['PATH']}"
        return {
            **outer,
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
        }

    def start(self, cpus: int, **environment: str) -> subprocess.Popen[bytes]:
        """Start a node and wait until the cluster has it."""
        head = not self.nodes
        place = self.folder / str(len(self.nodes))
        home = place / "home"
        home.mkdir(parents=True)
        where = ["--head"] if head else [f"--address={self.address}"]
        if head:
            self.port, dashboard = free_port(), free_port()
            self.dashboard = f"http://127.0.0.1:{dashboard}"
            where += [f"--port={self.port}", f"--dashboard-port={dashboard}"]
        where += [f"--temp-dir={place}/t", f"--dashboard-agent-listen-port={free_port()}"]
        fixed = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        limits = [f"--num-cpus={cpus}", "--object-store-memory=200000000"]
        with (place / "log").open("wb") as log:
            node = subprocess.Popen(
                [BIN / "ray", "start", *fixed, *where, *limits],
                cwd=home,
                env={**self.environment(), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        self.wait(len([one for one in self.nodes if one.poll() is None]))
        return node

    def alive(self) -> int:
        """How many nodes the cluster says it has."""
        try:
            found = requests.get(
                f"{self.dashboard}/nodes?view=summary",
                headers={"Authorization": f"Bearer {self.token}"},
                timeout=5,
            ).json()
        except (requests.RequestException, ValueError):
            return 0
        return sum(one["raylet"].get("state") == "ALIVE" for one in found["data"]["summary"])

    def wait(self, nodes: int, seconds: float = 120) -> None:
        """Until it has so many nodes."""
        until = time.monotonic() + seconds
        while self.alive() != nodes:
            assert time.monotonic() < until, (self.folder / "0" / "log").read_text()
            time.sleep(0.2)

    def stop(self, node: subprocess.Popen[bytes], *, kill: bool = False) -> None:
        """End a node and every process of it, at once if it is to be killed."""
        processes = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        if kill:
            for process in processes:
                _end(process)
        else:
            node.terminate()
        psutil.wait_procs(processes, timeout=10)
        for process in processes:
            _end(process)
        node.wait()


@contextmanager
def ray_cluster(cpus: Sequence[int], **environment: str) -> Iterator[RayCluster]:
    """A cluster of nodes with so many CPUs each, that asks for a token; nothing of it is left behind."""
    # Not in a folder of pytest: the path of a socket has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="tlray-ray-", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        for number in cpus:
            cluster.start(number, **environment)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            if node.poll() is None:
                cluster.stop(node, kill=True)
        end(folder)
        shutil.rmtree(folder)


def left(folder: Path) -> list[psutil.Process]:
    """Processes that name this folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(folder) in word for word in process.cmdline()):
                found.append(process)
    return found


def end(folder: Path) -> None:
    """Kill the processes that name this folder, with their children."""
    for process in left(folder):
        with suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            for one in [process, *children]:
                _end(one)
            psutil.wait_procs([process, *children], timeout=10)


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
