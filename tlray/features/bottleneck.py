"""What limited a job: where the time went, and what would help."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tlray.core.results import InferenceCounts, InferenceTime, NodeTime, TrainingSummary, TrainingTime

_BUSY = 0.8
"""The share of its time from which on an actor counts as always busy."""
_SHOWN = 8
"""Nodes in a line for people."""
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


def inference_time(shards: Sequence[ShardTiming]) -> InferenceTime | None:
    """Where the time of a pass over images went; None if it had no shards."""
    if not shards:
        return None
    by_actor: defaultdict[str, list[ShardTiming]] = defaultdict(list)
    for shard in shards:
        by_actor[shard.actor].append(shard)
    windows = []
    for own in by_actor.values():
        started, ended = min(shard.started for shard in own), max(shard.ended for shard in own)
        busy = sum(shard.network_seconds + shard.write_seconds for shard in own)
        windows.append((started, max(ended, started + busy)))  # The clock may have been set back.
    network, writing = sum(s.network_seconds for s in shards), sum(s.write_seconds for s in shards)
    span = _union(windows)
    waiting = sum(ended - started for started, ended in windows) - network - writing
    return InferenceTime(
        span=round(span, 3),
        reading=round(sum(shard.read_seconds for shard in shards), 3),
        decoding=round(sum(shard.decode_seconds for shard in shards), 3),
        network=round(network, 3),
        writing=round(writing, 3),
        waiting=round(max(0.0, waiting), 3),
        actors=len(by_actor),
        device=shards[0].device,
        steady_images_per_second=round(sum(s.rows + s.errors for s in shards) / max(span, 1e-9), 3),
        nodes=_by_node(shards),
    )


def _union(windows: Sequence[tuple[float, float]]) -> float:
    """The time that is in at least one of these windows: actors may work one after the other."""
    total, last = 0.0, float("-inf")
    for started, ended in sorted(windows):
        total += max(0.0, ended - max(started, last))
        last = max(last, ended)
    return total


def _by_node(shards: Sequence[ShardTiming]) -> list[NodeTime]:
    by_node: defaultdict[tuple[str, str], list[ShardTiming]] = defaultdict(list)
    for shard in shards:
        by_node[shard.host, shard.node].append(shard)
    return [
        NodeTime(
            node=node,
            host=host,
            actors=len({shard.actor for shard in done}),
            rows=sum(shard.rows for shard in done),
            seconds=round(sum(shard.network_seconds + shard.write_seconds for shard in done), 3),
        )
        for (host, node), done in sorted(by_node.items())
    ]


def judge(time: InferenceTime | None, seconds: float) -> str:
    """What limited a pass over images, as `InferenceCounts.limited_by` has it.

    Args:
        time: where its time went.
        seconds: that the whole command took.
    """
    if time is None:
        return "nothing"
    if time.span < seconds / 2:
        return "startup"
    busy = time.network + time.writing
    if busy >= _BUSY * (busy + time.waiting):
        return "network" if time.network >= time.writing else "writing"
    return "reading" if time.reading > time.decoding else "decoding"


def judge_training(time: TrainingTime, seconds: float) -> str:
    """What limited a training, as `TrainingSummary.limited_by` has it; arguments as of `judge`."""
    span = time.inference.span if time.inference else 0.0
    if span + time.training < seconds / 2:
        return "startup"
    if time.inference and span > time.training:
        return judge(time.inference, span)
    return "stream" if time.waited > time.training / 2 else "training"


def sentence(result: InferenceCounts | TrainingSummary) -> str:
    """What limited a job, for people; a second line if several nodes took part; empty if nothing ran."""
    training = result.time if isinstance(result.time, TrainingTime) else None
    inference = result.time.inference if isinstance(result.time, TrainingTime) else result.time
    if training is None and inference is None:
        return ""
    if result.limited_by == "startup":
        work = (inference.span if inference else 0.0) + (training.training if training else 0.0)
        line = (
            f"limited by start-up: the work itself took {work:.1f} of {result.seconds:.1f} s, "
            "and more of it would take little longer"
        )
    else:
        kind, advice = _HELP[result.limited_by]
        parts = [_busy(inference)] if inference else []
        if training:
            parts.append(f"training {training.training:.1f} s, {training.waited:.1f} of it waiting")
        more = "GPUs" if inference and inference.device == "GPU" else "GPUs or nodes"
        line = f"{kind}: {'; '.join(parts)}; to speed up, {advice.format(more=more)}"
    return "\n".join([line, *_of_nodes(inference.nodes if inference else [])])


def _of_nodes(nodes: Sequence[NodeTime]) -> list[str]:
    if len(nodes) < 2:
        return []
    shown = [f"{node.host} {node.rows:,} rows in {node.seconds:.1f} s" for node in nodes[:_SHOWN]]
    more = f", and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return [f"by {len(nodes)} nodes: {', '.join(shown)}{more}"]


def _busy(time: InferenceTime) -> str:
    """How busy the actors were."""
    busy = time.network + time.writing
    whole = max(busy + time.waiting, 1e-9)
    seconds = {"network": time.network, "writing": time.writing, "waiting": time.waiting}
    shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in seconds.items())
    return f"{busy / max(time.span, 1e-9):.1f} of {time.actors} {time.device} actors busy ({shares})"
