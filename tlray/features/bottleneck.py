"""Finds out what limited a job: where its time went, and what would make it faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from tlray.core.results import InferenceCounts, InferenceTime, NodeTime, TrainingSummary, TrainingTime

_BUSY = 0.8
"""An actor that works at least this share of its time counts as always busy."""
_SHOWN = 8
"""The most nodes that the text for people lists."""
_HELP = {
    "reading": ("read-bound", "store the images nearer, or add CPUs, which read in parallel"),
    "decoding": ("decode-bound", "add CPUs, or store smaller images"),
    "network": ("network-bound", "add {more}, or use a smaller --image-size or a faster --backbone"),
    "writing": ("write-bound", "use --store float16, or a later --cut"),
    "training": ("training-bound", "add --workers, on GPUs or nodes"),
    "stream": ("stream-bound", "add CPUs or GPUs that make new views, or reuse views with --views"),
}
"""For each stage, the name of a job that it limits, and advice on how to make that job faster."""


@dataclass(frozen=True)
class ShardTiming:
    """The result of one shard, and the seconds that each stage spent on it."""

    rows: int
    errors: int
    read_seconds: float
    decode_seconds: float
    network_seconds: float
    write_seconds: float
    actor: str
    """Ray's id of the actor that ran the network."""
    node: str
    """Ray's id of the node of that actor."""
    host: str
    """The name of that node's machine, which several nodes may share."""
    device: str
    """The device that ran the network, "GPU" or "CPU"."""
    started: float
    """When the actor received the shard, in seconds since the epoch."""
    ended: float


def inference_time(shards: Sequence[ShardTiming]) -> InferenceTime | None:
    """The seconds that a pass over images spent in each stage; None if it had no shards."""
    if not shards:
        return None
    windows = []
    for group in _groups(shards, "actor"):
        started, ended = min(shard.started for shard in group), max(shard.ended for shard in group)
        busy = sum(shard.network_seconds + shard.write_seconds for shard in group)
        windows.append((started, max(ended, started + busy)))  # Someone may have set the clock back.
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
        actors=len(windows),
        device=shards[0].device,
        steady_images_per_second=round(sum(s.rows + s.errors for s in shards) / max(span, 1e-9), 3),
        nodes=[
            NodeTime(
                node=group[0].node,
                host=group[0].host,
                actors=len({shard.actor for shard in group}),
                rows=sum(shard.rows for shard in group),
                seconds=round(sum(shard.network_seconds + shard.write_seconds for shard in group), 3),
            )
            for group in _groups(shards, "host", "node")
        ],
    )


def _union(windows: Sequence[tuple[float, float]]) -> float:
    """The time that at least one window covers, because actors may work one after the other."""
    total, last = 0.0, float("-inf")
    for started, ended in sorted(windows):
        total += max(0.0, ended - max(started, last))
        last = max(last, ended)
    return total


def _groups(shards: Sequence[ShardTiming], *fields: str) -> list[list[ShardTiming]]:
    """The shards in groups with equal values in these fields, sorted by these values."""
    key = attrgetter(*fields)
    return [list(group) for _, group in groupby(sorted(shards, key=key), key=key)]


def judge(time: InferenceTime | None, seconds: float) -> str:
    """What limited a pass over images (`InferenceCounts.limited_by`), if the whole command took `seconds`."""
    if time is None:
        return "nothing"
    if time.span < seconds / 2:
        return "startup"
    busy = time.network + time.writing
    if busy >= _BUSY * (busy + time.waiting):
        return "network" if time.network >= time.writing else "writing"
    return "reading" if time.reading > time.decoding else "decoding"


def judge_training(time: TrainingTime, seconds: float) -> str:
    """What limited a training (`TrainingSummary.limited_by`), if the whole command took `seconds`."""
    span = time.inference.span if time.inference else 0.0
    if span + time.training < seconds / 2:
        return "startup"
    if time.inference and span > time.training:
        return judge(time.inference, span)
    return "stream" if time.waited > time.training / 2 else "training"


def sentence(result: InferenceCounts | TrainingSummary) -> str:
    """What limited a job, in words. Several nodes add a second line; the text is empty if nothing ran."""
    training = result.time if isinstance(result.time, TrainingTime) else None
    inference = result.time.inference if isinstance(result.time, TrainingTime) else result.time
    if training is None and inference is None:
        return ""
    if result.limited_by == "startup":
        work = (inference.span if inference else 0.0) + (training.training if training else 0.0)
        line = (
            f"limited by start-up: the work itself took {work:.1f} of {result.seconds:.1f} s, "
            "and a larger job would take little longer"
        )
    else:
        kind, advice = _HELP[result.limited_by]
        parts = [_busy(inference)] if inference else []
        if training:
            parts.append(f"training {training.training:.1f} s, {training.waited:.1f} of it waiting")
        more = "GPUs" if inference and inference.device == "GPU" else "GPUs or nodes"
        line = f"{kind}: {'; '.join(parts)}; to speed up, {advice.format(more=more)}"
    nodes = inference.nodes if inference else []
    if len(nodes) < 2:
        return line
    shown = [f"{node.host} {node.rows:,} rows in {node.seconds:.1f} s" for node in nodes[:_SHOWN]]
    others = f", and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return f"{line}\nby {len(nodes)} nodes: {', '.join(shown)}{others}"


def _busy(time: InferenceTime) -> str:
    busy = time.network + time.writing
    whole = max(busy + time.waiting, 1e-9)
    seconds = {"network": time.network, "writing": time.writing, "waiting": time.waiting}
    shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in seconds.items())
    return f"{busy / max(time.span, 1e-9):.1f} of {time.actors} {time.device} actors busy ({shares})"
