"""Checks that every node of a cluster can do its share of a job, and decides how many networks they hold."""

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
"""CPUs of an actor, few enough for any node. Its network still uses all cores that decoding leaves free."""
READ_CPUS = 0.05
"""CPUs of the task that reads the index. Decoding has another number, or Ray would fuse the two stages."""
_SECONDS = 600
"""Time in which a node must answer; Ray allows as long for installing the packages of the job on it."""


class Probe(Protocol):
    """Something that every node must be able to read; it is sent to each of them."""

    @property
    def place(self) -> str:
        """The location, for messages."""

    def fault(self) -> str | None:
        """The reason why this process cannot read it; None if it can."""


class Pool(NamedTuple):
    """The actors that hold the network, and the CPUs and GPUs that each of them reserves."""

    least: int
    most: int
    gpus: float
    cpus: float
    decode_cpus: float
    """CPUs of each task that decodes for the actors."""


def pool(actors: tuple[int, int] | None, gpus_per_actor: float) -> Pool:
    """Decide how many actors hold the network on this Ray, and what each reserves.

    Args:
        actors: the least and the most actors; None for one per `gpus_per_actor`, or one per node with CPUs
            if there are no GPUs.
        gpus_per_actor: GPUs of each actor; not used if there are no GPUs.

    Raises:
        UserError: `gpus_per_actor` is less than 1 and there is no GPU.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    share = gpus_per_actor if gpus else 0.0
    if gpus_per_actor < 1 and not gpus:
        raise UserError(f"--gpus-per-actor {gpus_per_actor:g}: this Ray has no GPU; leave out the option")
    cpus = [node["Resources"]["CPU"] for node in with_cpus()]
    # A cluster that scales up may have no node with CPUs yet.
    size = max(1, int(gpus / share) if share else len(cpus))
    least, most = actors or (size, size)
    if least < most and not share and cpus:
        # Reserve so many CPUs for an actor that a node has room for its share only; otherwise all actors
        # start on the first node.
        usual = mode(sorted(cpus, reverse=True))
        own = usual / (-(-least // sum(count >= usual for count in cpus)) + 0.5)
        return Pool(least, most, share, own, max(0.01, (own / 2 - READ_CPUS) / usual))
    # A decoding task must fit beside an actor, or none would ever run.
    return Pool(least, most, share, _ACTOR_CPUS, 1.0 if max(cpus, default=0) >= 2 else 0.5)


def check(versions: Mapping[str, str], out: Folder, probe: Probe | None = None) -> None:
    """Check that every other node of this Ray has the same packages and sees the same files.

    Args:
        versions: the versions of the packages that the job uses.
        out: a folder in which this process must see what the nodes write.
        probe: what every node must be able to read if this process can, e.g. the first image.

    Raises:
        UserError: a node fails the check; the message says which and why.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in with_cpus() if node["NodeID"] != local}
    if not others:
        return
    readable = probe if probe is not None and probe.fault() is None else None
    token = f".tlray-{secrets.token_hex(8)}"
    task = ray.remote(num_cpus=0, max_retries=0)(_check_node)
    try:
        out.write(f"{token}.tmp", token.encode())
        answers = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                versions, out, token, node, readable
            ): node
            for node in others
        }
        ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=_SECONDS)
        faults = {answers[answer]: f"does not answer within {_SECONDS} s" for answer in late}
        faults |= {answers[answer]: _fault(answer, out, token, answers[answer]) for answer in ready}
    finally:
        for name in (f"{token}.tmp", *(f"{token}-{node}.tmp" for node in others)):
            with suppress(OSError):
                out.remove(name)
    alive = {node["NodeID"] for node in with_cpus()}
    lines = [
        f"node {others[node]['NodeManagerAddress']} {fault}"
        for node, fault in faults.items()
        if fault and node in alive
    ]
    if lines:
        more = f" (and {len(lines) - 1} other nodes)" if len(lines) > 1 else ""
        raise UserError(f"not every node of this Ray can do the job: {lines[0]}{more}")


def agree(versions: Mapping[str, str]) -> None:
    """Raise JobError unless this process has these versions; its node may have joined after `check`."""
    if fault := _other_versions(tuple(versions.items())):
        raise JobError(f"node {socket.gethostname()} {fault}")


def check_gpu() -> None:
    """Raise JobError if Ray gave this process a GPU that TensorFlow, which is imported, does not find."""
    import ray

    if ray.get_gpu_ids() and not sys.modules["tensorflow"].config.list_physical_devices("GPU"):
        raise JobError(
            f"Ray has a GPU on node {socket.gethostname()}, and TensorFlow finds none: "
            "install tlray[gpu] there, or start that node with --num-gpus 0"
        )


def with_cpus() -> list[dict[str, Any]]:
    """The live nodes of this Ray that have CPUs, as `ray.nodes` describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def _check_node(
    versions: Mapping[str, str], out: Folder, token: str, node: str, probe: Probe | None
) -> str | None:
    """The reason why the node that runs this cannot do its share; None if it can."""
    if fault := _other_versions(tuple(versions.items())):
        return fault
    if probe is not None and (reason := probe.fault()):
        return (
            f"cannot read {probe.place}, which the node of the command can ({reason}): "
            "put the images where every node sees them"
        )
    try:
        if out.read(f"{token}.tmp") != token.encode():
            raise OSError("a test file has other content there")
        out.write(f"{token}-{node}.tmp", b"")
    except OSError as error:
        return _not_shared(out, error.strerror or str(error))
    return None


def _fault(answer: Any, out: Folder, token: str, node: str) -> str | None:
    """The answer of `_check_node`, or what this process finds wrong with the node."""
    import ray

    try:
        fault: str | None = ray.get(answer)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        return f"cannot run tlray ({reason}): install the same there as here"
    if fault is None and not out.is_file(f"{token}-{node}.tmp"):
        return _not_shared(out, "a test file that the node wrote does not appear here")
    return fault


def _not_shared(out: Folder, reason: str) -> str:
    return (
        f"has another {out.uri} than the one the command writes to ({reason}): "
        "choose a place that all nodes share, e.g. a network folder or s3://"
    )


@functools.cache
def _other_versions(versions: tuple[tuple[str, str], ...]) -> str | None:
    for name, expected in versions:
        try:
            installed = f"{name} {version(name)}"
        except PackageNotFoundError:
            installed = f"no {name}"
        if installed != f"{name} {expected}":
            return f"has {installed}, and the job was started with {expected}: install the same there"
    return None
