"""How an extraction would spread over the nodes of a Ray, from a sample tried on a node of each kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tlray.cluster import nodes, session
from tlray.cluster.nodes import Pool
from tlray.core.errors import JobError, UserError
from tlray.core.record import Record

_SECONDS = 300
"""How long a node may take for its sample: other jobs may hold its CPUs and GPUs."""


class Cost(NamedTuple):
    """What an image costs on a machine, in seconds."""

    read: float
    """Of one core."""
    decode: float
    """Of one core."""
    network: float | None
    """Of one GPU, or of all cores; None if it was not tried."""
    errors: int
    """Images of the sample that are bad."""
    row_shape: list[int] | None
    """Of the features."""
    row_bytes: float | None
    """Of a row in a part file."""


class Kind(NamedTuple):
    """Nodes that are alike, and hold as many actors each."""

    cpus: float
    gpus: float
    accelerator: str | None
    """As Ray calls it, e.g. "A10G"."""
    actors: int


def try_kinds(
    pool: Pool, measure: Callable[..., Cost], arguments: Mapping[str, Any]
) -> dict[Kind, tuple[int, Cost]]:
    """Try the sample on a node of each kind of the Ray this process is connected to.

    Args:
        pool: the actors of the job.
        measure: a function that is called there; its first argument is whether to try the network as well.
        arguments: its other arguments, by name.

    Returns:
        Of each kind how many nodes there are, and what an image costs there.

    Raises:
        UserError: no node can hold an actor.
        JobError: a node cannot do it, or does not come to it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kinds = _kinds(pool)
    task = ray.remote(max_retries=0)(measure)
    asked = {}
    for kind, names in kinds.items():
        where = NodeAffinitySchedulingStrategy(names[0], soft=False)
        gpus = pool.gpus if kind.actors else 0
        there = task.options(num_cpus=min(1, kind.cpus), num_gpus=gpus, scheduling_strategy=where)
        asked[kind] = there.remote(kind.actors > 0, **arguments)
    try:
        costs = ray.get(list(asked.values()), timeout=_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise JobError(
            f"a node has not come to the sample in {_SECONDS} s: other jobs hold its CPUs or GPUs; try later"
        ) from error
    except ray.exceptions.RayError as error:
        raise JobError(f"the sample failed on a node: {session.reason(error)}") from error
    return {kind: (len(kinds[kind]), cost) for kind, cost in zip(asked, costs, strict=True)}


def _kinds(pool: Pool) -> dict[Kind, list[str]]:
    """The ids of the nodes of each kind."""
    there = {node["NodeID"]: node["Resources"] for node in nodes.with_cpus()}
    room = {
        name: int(resources.get("GPU", 0) / pool.gpus if pool.gpus else resources["CPU"] / pool.cpus)
        for name, resources in there.items()
    }
    # Ray Data spreads them in turn.
    places = [name for turn in range(max(room.values(), default=0)) for name in there if turn < room[name]]
    if not places:
        raise UserError("no node of this Ray can hold the network: it has no GPUs yet, or no CPUs")
    actors = Counter(places[: pool.most])
    kinds = defaultdict(list)
    for name, resources in there.items():
        accelerator = next(
            (key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")), None
        )
        kinds[Kind(resources["CPU"], resources.get("GPU", 0), accelerator, actors[name])].append(name)
    return dict(kinds)


@dataclass(frozen=True, kw_only=True)
class KindThroughput(Record):
    """Nodes that are alike, and what an image takes on one of them."""

    nodes: int
    """How many there are."""
    cpus: float
    """Of each."""
    gpus: float
    """Of each."""
    accelerator: str | None
    """As Ray calls the GPU, e.g. "A10G"."""
    actors: int
    """On each."""
    read_ms: float
    """On one core."""
    decode_ms: float
    """On one core."""
    network_ms: float | None
    """On one GPU, or on all cores; None without an actor."""


@dataclass(frozen=True, kw_only=True)
class Throughput(Record):
    """How fast a whole Ray extracts."""

    images_per_second: float
    limited_by: str
    """"network" or "decoding"."""
    gpus: float
    """In use."""
    kinds: list[KindThroughput]


def estimate(tried: Mapping[Kind, tuple[int, Cost]], pool: Pool) -> Throughput:
    """The rate of the whole Ray, from what an image costs on each kind of node.

    Actors on GPUs compute while all cores decode. Actors on CPUs share their node's cores with decoding,
    which goes to nodes without an actor first.
    """
    network = beside = elsewhere = gpus = 0.0
    for kind, (count, cost) in tried.items():
        decoding = count * kind.cpus / (cost.read + cost.decode)
        if cost.network is None or pool.gpus:
            elsewhere += decoding
        else:
            beside += decoding
        if cost.network is not None:
            # Several actors on a GPU, or on the cores of a node, are together as fast as one.
            devices = min(kind.actors * pool.gpus, kind.gpus) if pool.gpus else 1
            network += count * devices / cost.network
            gpus += count * devices if pool.gpus else 0
    if pool.gpus:
        rate = min(network, elsewhere)
    else:
        rate = min(network, (1 + elsewhere / beside) / (1 / network + 1 / beside))
    return Throughput(
        images_per_second=round(rate, 3),
        limited_by="network" if network <= beside + elsewhere else "decoding",
        gpus=gpus,
        kinds=[
            KindThroughput(
                nodes=count,
                **kind._asdict(),
                read_ms=round(1e3 * cost.read, 3),
                decode_ms=round(1e3 * cost.decode, 3),
                network_ms=None if cost.network is None else round(1e3 * cost.network, 3),
            )
            for kind, (count, cost) in tried.items()
        ],
    )
