"""Estimates how fast a Ray cluster extracts features, from a sample that one node of each kind has timed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlray.cluster import nodes, session
from tlray.core.errors import JobError, UserError
from tlray.core.record import Record

_SECONDS = 300
"""The most time that a node may take for its sample, because other jobs may hold its CPUs and GPUs."""


class Cost(NamedTuple):
    """What a sample costs on a node. `read` and `decode` are seconds per image on one core."""

    read: float
    decode: float
    network: float | None
    """Seconds per image on one GPU, or on all cores; None if the network was not run."""
    errors: int
    """The number of bad images in the sample."""
    row_shape: list[int] | None
    """The shape of the features of one row."""
    row_bytes: float | None
    """The bytes of a row in a part file."""


@dataclass(frozen=True, kw_only=True)
class Kind(Record):
    """What each node of one kind has."""

    cpus: float
    gpus: float
    accelerator: str | None
    """Ray's name of the GPU, e.g. "A10G"."""
    actors: int


def measure_kinds(
    pool: nodes.Pool, measure: Callable[..., Cost], *arguments: Any
) -> dict[Kind, tuple[int, Cost]]:
    """The number of nodes of each kind in the connected Ray, and the cost of the sample on one of them.

    There, `measure` is called with whether to run the network, and with `arguments`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds = _kinds(pool)
    task = ray.remote(max_retries=0)(measure)
    answers = {}
    for kind, names in kinds.items():
        where = NodeAffinitySchedulingStrategy(names[0], soft=False)
        gpus = pool.gpus if kind.actors else 0
        remote = task.options(num_cpus=min(1, kind.cpus), num_gpus=gpus, scheduling_strategy=where)
        answers[kind] = remote.remote(kind.actors > 0, *arguments)
    try:
        costs = ray.get(list(answers.values()), timeout=_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise JobError(
            f"a node has not finished the sample in {_SECONDS} s: other jobs hold its CPUs or GPUs; try later"
        ) from error
    except ray.exceptions.RayError as error:
        raise JobError(f"the sample failed on a node: {session.reason(error)}") from error
    return {kind: (len(kinds[kind]), cost) for kind, cost in zip(answers, costs, strict=True)}


def _kinds(pool: nodes.Pool) -> dict[Kind, list[str]]:
    """The ids of the nodes of each kind."""
    by_id = {node["NodeID"]: node["Resources"] for node in nodes.with_cpus()}
    room = {
        name: int(resources.get("GPU", 0) / pool.gpus if pool.gpus else resources["CPU"] / pool.cpus)
        for name, resources in by_id.items()
    }
    # Ray Data starts one actor on each node in turn.
    places = [name for turn in range(max(room.values(), default=0)) for name in by_id if turn < room[name]]
    if not places:
        raise UserError("no node of this Ray can hold the network: it has no GPUs yet, or no CPUs")
    actors = Counter(places[: pool.most])
    kinds = defaultdict(list)
    for name, resources in by_id.items():
        gpu_names = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
        kind = Kind(
            cpus=resources["CPU"],
            gpus=resources.get("GPU", 0),
            accelerator=next(iter(gpu_names), None),
            actors=actors[name],
        )
        kinds[kind].append(name)
    return dict(kinds)


@dataclass(frozen=True, kw_only=True)
class KindThroughput(Kind):
    """The nodes of one kind, and the time of an image on one of them."""

    nodes: int
    """The number of nodes of this kind."""
    read_ms: float
    """Milliseconds for reading on one core."""
    decode_ms: float
    """Milliseconds for decoding on one core."""
    network_ms: float | None
    """Milliseconds for the network on one GPU, or on all cores; None if the nodes have no actor."""


@dataclass(frozen=True, kw_only=True)
class Throughput(Record):
    """How fast a whole Ray extracts features."""

    images_per_second: float
    limited_by: str
    """"network" or "decoding"."""
    gpus: float
    """The number of GPUs in use."""
    kinds: list[KindThroughput]


def estimate(costs: Mapping[Kind, tuple[int, Cost]], pool: nodes.Pool) -> Throughput:
    """The throughput of the whole Ray, from the number of nodes of each kind and the cost on one of them.

    Actors on GPUs compute while all cores decode. Actors on CPUs share the cores of their node with decoding,
    and nodes without an actor decode first.
    """
    network = shared = separate = gpus = 0.0
    for kind, (count, cost) in costs.items():
        decoding = count * kind.cpus / (cost.read + cost.decode)
        if cost.network is None or pool.gpus:
            separate += decoding
        else:
            shared += decoding
        if cost.network is not None:
            # Several actors on one GPU, or on the cores of one node, are together as fast as one actor.
            devices = min(kind.actors * pool.gpus, kind.gpus) if pool.gpus else 1
            network += count * devices / cost.network
            gpus += count * devices if pool.gpus else 0
    if pool.gpus:
        rate = min(network, separate)
    else:
        rate = min(network, (1 + separate / shared) / (1 / network + 1 / shared))
    return Throughput(
        images_per_second=round(rate, 3),
        limited_by="network" if network <= shared + separate else "decoding",
        gpus=gpus,
        kinds=[
            KindThroughput(
                nodes=count,
                **vars(kind),
                read_ms=round(1e3 * cost.read, 3),
                decode_ms=round(1e3 * cost.decode, 3),
                network_ms=None if cost.network is None else round(1e3 * cost.network, 3),
            )
            for kind, (count, cost) in costs.items()
        ],
    )
