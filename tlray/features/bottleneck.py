"""What limited a pass over images: where the time went, and what would help."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BUSY = 0.8
"""The share of an actor's time from which on it hardly waits."""
_SHOWN = 8
"""Of the nodes, in a line for people."""
_HELP = {
    "reading": ("read-bound", "keep the images nearer, or add CPUs, which read side by side"),
    "decoding": ("decode-bound", "add CPUs, or keep smaller images"),
    "network": ("network-bound", "add {more}, or take a smaller --image-size or a faster --backbone"),
    "writing": ("write-bound", "--store float16, or a later --cut"),
    "training": ("training-bound", "add --workers, on GPUs or nodes"),
    "stream": ("stream-bound", "add CPUs or GPUs for new views, or keep some with --views"),
}
"""For each stage, how a job is called that it limits, and what would help."""


@dataclass(frozen=True)
class ShardTiming:
    """What became of one shard, and the seconds it cost."""

    rows: int
    errors: int
    read_seconds: float
    decode_seconds: float
    network_seconds: float
    write_seconds: float
    actor: str
    """The id of the actor that holds the network."""
    node: str
    """Ray's id of the node that the actor is on."""
    host: str
    """The name of that machine, which several nodes may share."""
    device: str
    """What the network ran on: "GPU" or "CPU"."""
    started: float
    """When the network got it, seconds since the epoch."""
    ended: float


def judge(shards: Sequence[ShardTiming]) -> dict[str, Any]:
    """What limited a pass, as JSON values.

    Returns:
        limited_by: "reading", "decoding", "network" or "writing"; "nothing" if nothing ran. And time, in
        seconds: span (from the first shard at the network to the last written), and, summed over all
        tasks and actors, reading, decoding, network, writing and waiting (of the actors, for pixels); with
        actors (how many), device (of the network: "GPU" or "CPU"), steady_images_per_second (in the span)
        and nodes: of each its id (node), host, actors, rows, and seconds of network and writing.
    """
    if not shards:
        return {"limited_by": "nothing", "time": None}
    reading, decoding = sum(s.read_seconds for s in shards), sum(s.decode_seconds for s in shards)
    network, writing = sum(s.network_seconds for s in shards), sum(s.write_seconds for s in shards)
    busy: defaultdict[str, float] = defaultdict(float)
    for shard in shards:
        busy[shard.actor] += shard.network_seconds + shard.write_seconds
    actors = len(busy)
    span = max(shard.ended for shard in shards) - min(shard.started for shard in shards)
    span = max(span, *busy.values())  # Though the clock was set back.
    if network + writing >= _BUSY * actors * span:
        limited_by = "network" if network >= writing else "writing"
    else:
        limited_by = "reading" if reading > decoding else "decoding"
    seconds = {
        "span": span,
        "reading": reading,
        "decoding": decoding,
        "network": network,
        "writing": writing,
        "waiting": max(0.0, actors * span - network - writing),
    }
    return {
        "limited_by": limited_by,
        "time": {
            **{name: round(value, 3) for name, value in seconds.items()},
            "actors": actors,
            "device": shards[0].device,
            "steady_images_per_second": round(sum(s.rows + s.errors for s in shards) / max(span, 1e-9), 3),
            "nodes": _by_node(shards),
        },
    }


def _by_node(shards: Sequence[ShardTiming]) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, str], list[ShardTiming]] = defaultdict(list)
    for shard in shards:
        found[shard.host, shard.node].append(shard)
    return [
        {
            "node": node,
            "host": host,
            "actors": len({shard.actor for shard in done}),
            "rows": sum(shard.rows for shard in done),
            "seconds": round(sum(shard.network_seconds + shard.write_seconds for shard in done), 3),
        }
        for (host, node), done in sorted(found.items())
    ]


def judge_training(passes: Sequence[ShardTiming], training: float, waited: float) -> dict[str, Any]:
    """What limited a fine-tuning, as JSON values.

    Args:
        passes: over the images, before the training.
        training: the seconds of all epochs.
        waited: those of them that a step waited for a stream of new views.

    Returns:
        limited_by: as of `judge` if the passes took longer than the training, else "training", or "stream" if
        it waited most of the time. And time: what `judge` says of the passes, if any, training and waited.
    """
    before = judge(passes)
    found = {"training": round(training, 3), "waited": round(waited, 3)}
    if before["time"] is not None and before["time"]["span"] > training:
        limited_by = before["limited_by"]
    else:
        limited_by = "stream" if waited > training / 2 else "training"
    return {"limited_by": limited_by, "time": {**(before["time"] or {}), **found}}


def sentence(judged: Mapping[str, Any]) -> str:
    """The same in one line, for people, and another one if several nodes had a part; empty if nothing ran."""
    time = judged["time"]
    if time is None:
        return ""
    kind, advice = _HELP[judged["limited_by"]]
    where = [_pass(time)] if "span" in time else []
    if "training" in time:
        where.append(f"training {time['training']:.1f} s, {time['waited']:.1f} of it waiting")
    more = "GPUs" if time.get("device") == "GPU" else "GPUs or nodes"
    line = f"{kind}: {'; '.join(where)}; to speed up, {advice.format(more=more)}"
    return "\n".join([line, *_of_nodes(time.get("nodes", []))])


def _of_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(nodes) < 2:
        return []
    shown = [f"{one['host']} {one['rows']:,} rows in {one['seconds']:.1f} s" for one in nodes[:_SHOWN]]
    more = f", and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return [f"by {len(nodes)} nodes: {', '.join(shown)}{more}"]


def _pass(time: Mapping[str, Any]) -> str:
    actors, span = time["actors"], max(time["span"], 1e-9)
    shares = [f"{name} {time[name] / (actors * span):.0%}" for name in ("network", "writing", "waiting")]
    busy = (time["network"] + time["writing"]) / span
    return f"{busy:.1f} of {actors} {time['device']} actors busy ({', '.join(shares)})"
