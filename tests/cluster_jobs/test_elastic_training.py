"""A training with more workers when nodes come, and with fewer when they are lost."""

import subprocess
import sys

import numpy as np

from tests.support.numpy_network import installed
from tests.support.outputs import head_weights
from tests.support.processes import wait_for
from tests.support.ray_cluster import Node, ray_cluster
from tlray.core.config import ExtractConfig, FitConfig
from tlray.features.extract import extract
from tlray.recipes.demo import write_digits
from tlray.training.fit import fit

RESIZING = """
from tlray.training import ray_workers
ray_workers._RESIZE_SECONDS = 2
from tlray.cli import main
main()
"""
"""The command line, which sees soon that there is room for more workers."""


def test_training_goes_on_with_the_nodes_that_are_there(tmp_path):
    """One worker at first, a second on a node that comes, and one again when that is lost."""
    features, epochs, told = str(tmp_path / "set"), 40, tmp_path / "told"
    write_digits(str(tmp_path / "digits"))
    with installed():
        extract(str(tmp_path / "digits"), features, ExtractConfig(backbone="grey-pixels"))
    config = FitConfig(head="linear", batch_size=2, epochs=epochs)
    fit(features, str(tmp_path / "alone"), config)
    words = ("fit", features, "--head", "linear", "--batch-size", "2", "--epochs", str(epochs), "--json")

    def epoch() -> int:
        return max(
            (int(line.split()[1].partition("/")[0]) for line in told.read_text().splitlines()), default=0
        )

    with ray_cluster([1]) as cluster, told.open("w") as log:
        more = (
            "--out",
            tmp_path / "model",
            "--address",
            cluster.address,
            "--workers",
            "2",
            "--min-workers",
            "1",
        )
        running = subprocess.Popen(
            [sys.executable, "-c", RESIZING, *words, *more],
            env=cluster.environment(),
            cwd=tmp_path,
            stderr=log,
        )

        def working(on: Node) -> bool:
            assert running.poll() is None, told.read_text()
            return any(
                one["state"] == "ALIVE" and one["node_id"] == on.id
                for one in cluster.actors("RayTrainWorker")
            )

        wait_for(lambda: working(cluster.nodes[0]) and epoch() > 1, seconds=600)
        second = cluster.start(1)
        wait_for(lambda: working(second), seconds=600)
        begun = epoch()
        wait_for(lambda: working(second) and epoch() > begun, seconds=600)
        assert epoch() < epochs
        cluster.stop(second, kill=True)
        assert running.wait(1200) == 0, told.read_text()
    for one, other in zip(head_weights(tmp_path / "alone"), head_weights(tmp_path / "model"), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-3)
