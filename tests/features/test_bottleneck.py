"""What limited a job, judged by what its shards took."""

from dataclasses import replace
from typing import Any

import pytest

from tlray.core.results import InferenceCounts, TrainingSummary, TrainingTime
from tlray.features.bottleneck import ShardTiming, inference_time, judge, judge_training, sentence

SECONDS = {"read_seconds": 0.5, "decode_seconds": 1.0, "network_seconds": 9.0, "write_seconds": 0.5}
WORKER = {"actor": "a", "node": "1", "host": "here", "device": "CPU"}
SHARD = ShardTiming(rows=100, errors=0, **SECONDS, **WORKER, started=1000.0, ended=1010.0)


def counts(*shards: ShardTiming, seconds: float = 12.0) -> InferenceCounts:
    """The result of a job with these shards."""
    time = inference_time(shards)
    values: dict[str, Any] = {"limited_by": judge(time, seconds), "time": time, "seconds": seconds}
    return InferenceCounts(images=0, rows=0, errors=0, images_per_second=0.0, **values)


@pytest.mark.parametrize(
    ("changed", "limited_by", "kind"),
    [
        ({}, "network", "network-bound"),
        ({"network_seconds": 2.0, "write_seconds": 7.5}, "writing", "write-bound"),
        ({"network_seconds": 5.0, "decode_seconds": 9.0}, "decoding", "decode-bound"),
        ({"network_seconds": 5.0, "read_seconds": 9.0}, "reading", "read-bound"),
    ],
)
def test_what_an_actor_does_most_of_its_time_is_the_limit(changed, limited_by, kind):
    result = counts(replace(SHARD, **changed))
    assert result.limited_by == limited_by
    line = sentence(result)
    assert line.startswith(f"{kind}: ")
    assert "; to speed up, " in line
    assert len(line.splitlines()) == 1


def test_the_shares_are_those_of_the_actors():
    """Two actors, of which the second waits."""
    other = replace(SHARD, actor="b", network_seconds=2.0, write_seconds=0.0, started=1005.0, ended=1010.0)
    result = counts(replace(SHARD, device="GPU"), replace(other, device="GPU"))
    assert result.limited_by == "decoding"
    assert result.time is not None
    assert result.time.to_json() == {
        "span": 10.0,
        "reading": 1.0,
        "decoding": 2.0,
        "network": 11.0,
        "writing": 0.5,
        "waiting": 3.5,
        "actors": 2,
        "device": "GPU",
        "steady_images_per_second": 20.0,
        "nodes": [{"node": "1", "host": "here", "actors": 2, "rows": 200, "seconds": 11.5}],
    }
    line = sentence(result)
    assert "1.1 of 2 GPU actors busy (network 73%, writing 3%, waiting 23%)" in line
    assert "add CPUs" in line


def test_the_start_of_an_actor_is_not_waiting():
    """Actors may work one after the other, as in the passes before a fine-tuning, or begin late."""
    second = replace(SHARD, actor="b", started=1030.0, ended=1040.0)
    result = counts(SHARD, second, seconds=45.0)
    assert (result.limited_by, result.time and result.time.span) == ("startup", 20.0)
    result = counts(SHARD, second, seconds=39.0)
    assert (result.limited_by, result.time and result.time.waiting) == ("network", 1.0)


def test_a_job_of_seconds_is_limited_by_its_start():
    result = counts(SHARD, seconds=21.0)
    assert result.limited_by == "startup"
    assert sentence(result).startswith("limited by start-up: the work itself took 10.0 of 21.0 s")


def test_the_sentence_lists_what_each_node_did():
    """Two nodes on one machine, and one on another."""
    others = [
        replace(SHARD, actor="b", node="2", rows=1500, errors=2),
        replace(SHARD, actor="c", host="there", node="0", rows=50),
    ]
    result = counts(SHARD, *others, replace(SHARD, started=1010.0, ended=1020.0))
    assert result.time is not None
    assert [(node.host, node.node, node.rows, node.seconds) for node in result.time.nodes] == [
        ("here", "1", 200, 19.0),
        ("here", "2", 1500, 9.5),
        ("there", "0", 50, 9.5),
    ]
    first, second = sentence(result).splitlines()
    assert first.endswith("or a faster --backbone")
    assert second == "by 3 nodes: here 200 rows in 19.0 s, here 1,500 rows in 9.5 s, there 50 rows in 9.5 s"
    many = [replace(SHARD, actor=f"{n}", node=f"{n}", host=f"node-{n}") for n in range(10)]
    assert sentence(counts(*many)).endswith("node-7 100 rows in 9.5 s, and 2 more")


def test_a_clock_that_is_set_back_makes_no_speed():
    time = inference_time([SHARD, replace(SHARD, started=1010.0, ended=1010.0 - 3600)])
    assert time is not None
    assert (time.span, time.waiting) == (19.0, 0.0)
    assert time.steady_images_per_second == pytest.approx(200 / 19, abs=1e-3)


def test_nothing_ran():
    assert (counts().limited_by, counts().time) == ("nothing", None)
    assert sentence(counts()) == ""


@pytest.mark.parametrize(
    ("passes", "training", "waited", "seconds", "limited_by"),
    [
        ([SHARD], 9.0, 0.0, 20.0, "network"),
        ([SHARD], 11.0, 0.0, 25.0, "training"),
        ([SHARD], 20.0, 11.0, 40.0, "stream"),
        ([], 5.0, 1.0, 8.0, "training"),
        ([], 3.0, 0.0, 8.0, "startup"),
        ([SHARD], 1.0, 0.0, 24.0, "startup"),
    ],
)
def test_a_fine_tuning_is_limited_by_what_took_longest(passes, training, waited, seconds, limited_by):
    time = TrainingTime(training=training, waited=waited, inference=inference_time(passes))
    assert judge_training(time, seconds) == limited_by
    assert TrainingTime.from_json(time.to_json()) == time
    assert ("span" in time.to_json()) == bool(passes)
    values: dict[str, Any] = dict.fromkeys(TrainingSummary.__dataclass_fields__, 0)
    values |= {"seconds": seconds, "limited_by": limited_by, "time": time}
    line = sentence(TrainingSummary(**values))
    if limited_by == "startup":
        assert f"of {seconds:.1f} s" in line
    else:
        assert f"training {training:.1f} s, {waited:.1f} of it waiting" in line
        assert ("actors busy" in line) == bool(passes)
