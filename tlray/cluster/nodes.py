"""The nodes of a cluster: whether each can do its share of a job, and how many networks they hold."""

from __future__ import annotations

import functools
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from statistics import mode
from typing import Any, NamedTuple, Protocol

from tlray.core.errors import JobError, UserError
from tlray.core.storage import Folder

_ACTOR_CPUS = 0.4
"""What counts is that it can be on any node; the network takes all cores that decoding leaves."""
READ_CPUS = 0.05
"""Of the task that reads the index: hardly any, and other than decoding, or Ray would fuse the two stages."""
_SECONDS = 600
"""How long a node may take to answer: it may have to install the packages of the job for it, for which Ray
gives it as long. Of one that is lost Ray tells sooner."""


class Probe(Protocol):
    """Something that every node must be able to read; it is sent to each of them."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    def fault(self) -> str | None:
        """Why the process that calls this cannot read it; None if it can."""


class Pool(NamedTuple):
    """The processes that hold the network."""

    least: int
    most: int
    gpus: float
    """Of each."""
    cpus: float
    """Of each."""
    decode_cpus: float
    """Of a task that decodes for them."""


def pool(actors: tuple[int, int] | None, gpus_per_actor: float) -> Pool:
    """The processes that hold the network on this Ray.

    Args:
        actors: the least and the most, as the user wants it; if not given, one for each share of a GPU, or
            without GPUs for each node with CPUs.
        gpus_per_actor: of a cluster with GPUs.

    Raises:
        UserError: `gpus_per_actor` is less than 1 and there is no GPU.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    share = gpus_per_actor if gpus else 0.0
    if gpus_per_actor < 1 and not gpus:
        raise UserError(f"--gpus-per-actor {gpus_per_actor:g}: this Ray has no GPU; leave the option away")
    cpus = [node["Resources"]["CPU"] for node in with_cpus()]
    # A cluster that grows may still have none.
    size = max(1, int(gpus / share) if share else len(cpus))
    least, most = actors or (size, size)
    if least < most and not share and cpus:
        # So much of a node that no more fit on it, or all would be there before another node comes.
        usual = mode(sorted(cpus, reverse=True))
        own = usual / (-(-least // sum(one >= usual for one in cpus)) + 0.5)
        return Pool(least, most, share, own, max(0.01, (own / 2 - READ_CPUS) / usual))
    # Beside an actor there must be room for a task that decodes, or none would ever run.
    return Pool(least, most, share, _ACTOR_CPUS, 1.0 if max(cpus, default=0) >= 2 else 0.5)


def check(versions: Mapping[str, str], out: Folder, probe: Probe | None = None) -> None:
    """Ask every other node of this Ray whether it has the same packages and sees the same files.

    Args:
        versions: of the packages that have a hand in the job.
        out: every node must be able to write there, so that this process sees it.
        probe: what every node must be able to read if this process can, such as the first image.

    Raises:
        UserError: a node cannot; the message says which, and why.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in with_cpus() if node["NodeID"] != here}
    if not others:
        return
    readable = probe if probe is not None and probe.fault() is None else None
    token = f".tlray-{secrets.token_hex(8)}"
    mine, look = f"{token}.tmp", ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        out.write(mine, token.encode())
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                versions, out, token, node, readable
            ): node
            for node in others
        }
        answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=_SECONDS)
        faults = {asked[answer]: f"does not answer within {_SECONDS} s" for answer in late}
        for answer in answered:
            fault = _fault(answer, out, token, asked[answer])
            if fault is not None:
                faults[asked[answer]] = fault
    finally:
        for name in (mine, *(f"{token}-{node}.tmp" for node in others)):
            with suppress(OSError):
                out.remove(name)
    left = {node["NodeID"] for node in with_cpus()}
    lines = [
        f"node {others[node]['NodeManagerAddress']} {fault}" for node, fault in faults.items() if node in left
    ]
    if lines:
        more = f" (and {len(lines) - 1} other nodes)" if len(lines) > 1 else ""
        raise UserError(f"not every node of this Ray can do the job: {lines[0]}{more}")


def agree(versions: Mapping[str, str]) -> None:
    """Raise JobError unless this process has these versions: a node may have joined after `check`."""
    if fault := _other_versions(tuple(versions.items())):
        raise JobError(f"node {socket.gethostname()} {fault}")


def check_gpu() -> None:
    """Raise JobError if Ray gave this process a GPU and TensorFlow, which is imported, finds none."""
    import ray

    if ray.get_gpu_ids() and not sys.modules["tensorflow"].config.list_physical_devices("GPU"):
        raise JobError(
            f"Ray has a GPU on node {socket.gethostname()}, and TensorFlow finds none: "
            "install tlray[gpu] there, or start that node with --num-gpus 0"
        )


def with_cpus() -> list[dict[str, Any]]:
    """The nodes of this Ray that can do something, as `ray.nodes` tells of them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def _look(versions: Mapping[str, str], out: Folder, token: str, node: str, probe: Probe | None) -> str | None:
    """What is wrong with the node this runs on."""
    if fault := _other_versions(tuple(versions.items())):
        return fault
    if probe is not None and (reason := probe.fault()):
        return (
            f"cannot read {probe.place}, which {socket.gethostname()} can ({reason}): "
            "put the images where every node sees them"
        )
    try:
        if out.read(f"{token}.tmp") != token.encode():
            raise OSError("it holds something else")
        out.write(f"{token}-{node}.tmp", b"")
    except OSError as error:
        return _elsewhere(out, error.strerror or str(error))
    return None


def _fault(answer: Any, out: Folder, token: str, node: str) -> str | None:
    import ray

    try:
        fault: str | None = ray.get(answer)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        return f"cannot run tlray ({reason}): install the same there as here"
    if fault is None and not out.is_file(f"{token}-{node}.tmp"):
        return _elsewhere(out, "what it writes is not seen here")
    return fault


def _elsewhere(out: Folder, reason: str) -> str:
    return (
        f"has another {out.uri} than the one the command writes to ({reason}): "
        "choose a place that all nodes share, e.g. a network folder or s3://"
    )


@functools.cache
def _other_versions(versions: tuple[tuple[str, str], ...]) -> str | None:
    for name, expected in versions:
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"has no {name}, and the job was started with {expected}: install the same there"
        if found != expected:
            return f"has {name} {found}, and the job was started with {expected}: install the same there"
    return None
