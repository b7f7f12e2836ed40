"""What limited a job: told from what its shards cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tlray.features.bottleneck import ShardTiming, judge, judge_training, sentence

SHARD = ShardTiming(
    rows=100,
    errors=0,
    read_seconds=0.5,
    decode_seconds=1.0,
    network_seconds=9.0,
    write_seconds=0.5,
    actor="a",
    node="1",
    host="here",
    device="CPU",
    started=1000.0,
    ended=1010.0,
)


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
    found = judge([replace(SHARD, **changed)])
    assert found["limited_by"] == limited_by
    line = sentence(found)
    assert line.startswith(f"{kind}: ")
    assert "; to speed up, " in line
    assert len(line.splitlines()) == 1


def test_the_shares_are_those_of_the_actors():
    """Two actors, of which the second comes late and waits."""
    late = replace(SHARD, actor="b", network_seconds=3.0, write_seconds=0.0, started=1005.0, ended=1010.0)
    found = judge([replace(SHARD, device="GPU"), replace(late, device="GPU")])
    assert found["limited_by"] == "decoding"
    assert found["time"] == {
        "span": 10.0,
        "reading": 1.0,
        "decoding": 2.0,
        "network": 12.0,
        "writing": 0.5,
        "waiting": 7.5,
        "actors": 2,
        "device": "GPU",
        "steady_images_per_second": 20.0,
        "nodes": [{"node": "1", "host": "here", "actors": 2, "rows": 200, "seconds": 12.5}],
    }
    line = sentence(found)
    assert "1.2 of 2 GPU actors busy (network 60%, writing 2%, waiting 38%)" in line
    assert "add CPUs" in line


def test_what_each_node_did_is_told():
    """Two nodes on one machine, and one on another."""
    others = [
        replace(SHARD, actor="b", node="2", rows=1500, errors=2),
        replace(SHARD, actor="c", host="there", node="0", rows=50),
    ]
    found = judge([SHARD, *others, SHARD])
    assert [(one["host"], one["node"], one["rows"], one["seconds"]) for one in found["time"]["nodes"]] == [
        ("here", "1", 200, 19.0),
        ("here", "2", 1500, 9.5),
        ("there", "0", 50, 9.5),
    ]
    first, second = sentence(found).splitlines()
    assert first.endswith("or keep smaller images")
    assert second == "by 3 nodes: here 200 rows in 19.0 s, here 1,500 rows in 9.5 s, there 50 rows in 9.5 s"
    many = [replace(SHARD, actor=f"{n}", node=f"{n}", host=f"node-{n}") for n in range(10)]
    assert sentence(judge(many)).endswith("node-7 100 rows in 9.5 s, and 2 more")


def test_a_clock_that_is_set_back_makes_no_speed():
    later = replace(SHARD, started=1010.0, ended=1010.0 - 3600)
    time = judge([SHARD, later])["time"]
    assert (time["span"], time["waiting"]) == (19.0, 0.0)
    assert time["steady_images_per_second"] == pytest.approx(200 / 19, abs=1e-3)


def test_nothing_ran():
    assert judge([]) == {"limited_by": "nothing", "time": None}
    assert sentence(judge([])) == ""


@pytest.mark.parametrize(
    ("passes", "training", "waited", "limited_by"),
    [
        ([SHARD], 9.0, 0.0, "network"),
        ([SHARD], 11.0, 0.0, "training"),
        ([SHARD], 20.0, 11.0, "stream"),
        ([], 5.0, 1.0, "training"),
    ],
)
def test_a_fine_tuning_is_limited_by_what_took_longest(passes, training, waited, limited_by):
    found = judge_training(passes, training, waited)
    assert found["limited_by"] == limited_by
    assert (found["time"]["training"], found["time"]["waited"]) == (training, waited)
    assert ("span" in found["time"]) == bool(passes)
    line = sentence(found)
    assert f"training {training:.1f} s, {waited:.1f} of it waiting" in line
    assert ("actors busy" in line) == bool(passes)
