"""What is reckoned of a cluster, from what an image costs on each kind of its nodes."""

import pytest

from tlray.cluster.nodes import Pool
from tlray.features.throughput import Cost, Kind, estimate

CPUS, GPUS = Pool(2, 2, gpus=0, cpus=0.4, decode_cpus=1), Pool(2, 2, gpus=1, cpus=0.4, decode_cpus=1)


def cost(network: float | None, decode: float = 0.008, read: float = 0.002) -> Cost:
    return Cost(read, decode, network, 0, [4, 4, 512], 1000.0)


def node(cpus: float, gpus: float = 0, actors: int = 1) -> Kind:
    return Kind(cpus=cpus, gpus=gpus, accelerator="L4" if gpus else None, actors=actors)


@pytest.mark.parametrize(
    ("tried", "pool", "rate", "limited_by", "gpus"),
    [
        # Cores do both: 50 ms of network and 10 ms of decoding on 2 cores, one image after the other.
        ({node(2): (1, cost(0.050))}, CPUS, 1 / 0.055, "network", 0),
        ({node(2): (3, cost(0.050))}, CPUS, 3 / 0.055, "network", 0),
        ({node(4): (1, cost(0.001))}, CPUS, 1 / 0.0035, "decoding", 0),
        # Another node decodes 200 a second, more than the network takes; then no more than a part of it.
        ({node(2): (1, cost(0.050)), node(2, actors=0): (1, cost(None))}, CPUS, 20, "network", 0),
        ({node(2): (1, cost(0.004)), node(2, actors=0): (1, cost(None))}, CPUS, 2 / 0.009, "network", 0),
        # GPUs compute while cores decode, their own and others; two actors on one are as fast as one.
        ({node(8, 1): (2, cost(0.002))}, GPUS, 1000, "network", 2),
        ({node(4, 1): (2, cost(0.001))}, GPUS, 800, "decoding", 2),
        ({node(4, 1): (2, cost(0.001)), node(32, actors=0): (1, cost(None))}, GPUS, 2000, "network", 2),
        ({node(8, 4): (1, cost(0.001))}, GPUS, 800, "decoding", 1),
        ({node(64, 1, actors=2): (1, cost(0.001))}, GPUS._replace(gpus=0.5), 1000, "network", 1),
    ],
)
def test_the_rate_of_a_cluster(tried, pool, rate, limited_by, gpus):
    result = estimate(tried, pool)
    assert result.images_per_second == pytest.approx(rate, abs=0.001)
    assert (result.limited_by, result.gpus) == (limited_by, gpus)


def test_each_kind_of_node_is_described():
    result = estimate({node(8, 1): (2, cost(0.002)), node(4, actors=0): (3, cost(None))}, GPUS)
    assert [kind.to_json() for kind in result.kinds] == [
        {
            **{"nodes": 2, "cpus": 8, "gpus": 1, "accelerator": "L4", "actors": 1},
            **{"read_ms": 2.0, "decode_ms": 8.0, "network_ms": 2.0},
        },
        {
            **{"nodes": 3, "cpus": 4, "gpus": 0, "accelerator": None, "actors": 0},
            **{"read_ms": 2.0, "decode_ms": 8.0, "network_ms": None},
        },
    ]
