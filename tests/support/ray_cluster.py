"""A real Ray of several nodes on this machine: a `ray start` for each, with its own ports and folder."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.support import processes

BIN = Path(sys.executable).parent


@dataclass
class Node:
    """One that was started."""

    process: subprocess.Popen[bytes]
    id: str
    """As Ray knows it."""


@dataclass
class RayCluster:
    """Nodes that can come and go; the first is the head, with the dashboard."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    nodes: list[Node] = field(default_factory=list)
    """Those that were started, the head first."""
    port: int = 0
    dashboard: str = ""

    @property
    def address(self) -> str:
        """For `--address` of the commands that run on Ray."""
        return f"127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a process needs to use this cluster; and, as on other machines, no path to this checkout."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        # With Ray's niceness they hardly get to run on a busy machine.
        ray = {**token, "RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_worker_niceness": "0"}
        return {**outer, **ray, "PATH": f"{BIN}{os.pathsep}{outer['PATH']}"}

    def start(self, cpus: int, **environment: str) -> Node:
        """Start a node and wait until the cluster has it."""
        # Ray gives up after 30 s, which on a busy machine may not do.
        for _ in range(4):
            if node := self._start(cpus, environment):
                self.nodes.append(node)
                return node
        raise AssertionError("no node starts")

    def _start(self, cpus: int, environment: Mapping[str, str]) -> Node | None:
        """Start a node; None if it ends at once."""
        head = not self.nodes
        place = Path(tempfile.mkdtemp(prefix="", dir=self.folder))
        home = place / "home"
        home.mkdir()
        words = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        if head:
            self.port, dashboard = free_port(), free_port()
            self.dashboard = f"http://127.0.0.1:{dashboard}"
            words += [
                "--head",
                f"--port={self.port}",
                f"--dashboard-port={dashboard}",
                f"--temp-dir={place}/t",
            ]
        else:  # As all nodes of one machine by default, it then uses the folder of the head.
            words.append(f"--address={self.address}")
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        words += [f"--num-cpus={cpus}", "--object-store-memory=200000000"]
        before = set() if head else self.alive()
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "ray", "start", *words],
                cwd=home,
                env={**self.environment(), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        new: set[str] = set()
        while not new and process.poll() is None:
            time.sleep(0.2)
            new = self.alive() - before
        return Node(process, *new) if new else None

    def running(self) -> list[Node]:
        """Those that were started and not stopped, the head first."""
        return [node for node in self.nodes if node.process.poll() is None]

    def alive(self) -> set[str]:
        """The ids of the nodes that the cluster says it has."""
        try:
            nodes = self.ask("api/v0/nodes?limit=10000")["data"]["result"]["result"]
        except (requests.RequestException, ValueError, KeyError):  # It is not there yet.
            return set()
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def actors(self, name: str) -> list[dict[str, Any]]:
        """The actors of a class with this in its name, those that have ended too, as Ray tells of them."""
        actors = self.ask("api/v0/actors?detail=1&limit=10000")["data"]["result"]["result"]
        return [actor for actor in actors if name in actor["class_name"]]

    def ask(self, path: str) -> Any:
        """What the dashboard answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.get(f"{self.dashboard}/{path}", headers=headers, timeout=10).json()

    def stop(self, node: Node, *, kill: bool = False) -> None:
        """End a node and every process of it, at once if it is to be killed."""
        members = processes.family(node.process.pid)
        if not kill:
            node.process.terminate()
            psutil.wait_procs(members, timeout=10)
        processes.kill(members)
        node.process.wait()


@contextmanager
def ray_cluster(cpus: Sequence[int], **environment: str) -> Iterator[RayCluster]:
    """A cluster of nodes with so many CPUs each, that asks for a token; nothing of it is left behind."""
    # The path of a socket has 107 characters at most, and pytest's folders have long names.
    folder = Path(tempfile.mkdtemp(prefix="tlray-ray-", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        for number in cpus:
            cluster.start(number, **environment)
        yield cluster
    finally:
        for node in reversed(cluster.running()):
            cluster.stop(node, kill=True)
        end(folder)
        shutil.rmtree(folder)


def left(folder: Path) -> list[psutil.Process]:
    """Processes that name this folder."""
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if str(folder) in processes.title(process)]


def end(folder: Path) -> None:
    """Kill the processes that name this folder, with their children."""
    for process in left(folder):
        members = processes.family(process.pid)
        processes.kill(members)
        psutil.wait_procs(members, timeout=10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
