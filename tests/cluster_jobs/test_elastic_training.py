"""A training with more workers when nodes come, and with fewer when they are lost."""

import subprocess
import sys

from tests.support.numpy_network import installed
from tests.support.outputs import assert_same_head
from tests.support.processes import wait_for
from tests.support.ray_cluster import ray_cluster
from tlray.features.extract import extract
from tlray.recipes.demo import write_digits
from tlray.training.fit import fit

HELD = """
import os, time
from ray.util.queue import Queue
from tlray.cli import main
from tlray.training import ray_workers

def held(*given, run=ray_workers.run, report, **options):
    def wait(metrics):
        report(metrics)
        while os.path.exists(os.environ["HOLD"]):
            time.sleep(0.1)
    return run(*given, report=wait, **options)

ray_workers.run = held
ray_workers.Queue = lambda **options: Queue(maxsize=1, **options)
ray_workers._RESIZE_SECONDS = 2
main()
"""
"""The command line: it soon sees that there is room for more workers, and waits while $HOLD exists."""
EPOCHS = 12


def test_training_goes_on_with_the_nodes_that_are_there(tmp_path):
    """One worker at first, a second on a node that comes, and one again when that is lost."""
    features, log, hold = str(tmp_path / "set"), tmp_path / "log", tmp_path / "hold"
    write_digits(str(tmp_path / "digits"))
    with installed():
        extract(tmp_path / "digits", features, backbone="grey-pixels")
    fit(features, tmp_path / "alone", head="linear", batch_size=2, epochs=EPOCHS)
    words = ["fit", features, "--head", "linear", "--batch-size", "2", "--epochs", str(EPOCHS)]
    words += ["--out", str(tmp_path / "model"), "--workers", "2", "--min-workers", "1"]

    def epoch() -> int:
        lines = [line for line in log.read_text().splitlines() if line.startswith("epoch ")]
        return max((int(line.split()[1].partition("/")[0]) for line in lines), default=0)

    with ray_cluster([1]) as cluster, log.open("w") as stderr:
        hold.touch()
        running = subprocess.Popen(
            [sys.executable, "-c", HELD, *words, "--address", cluster.address],
            env={**cluster.environment(), "HOLD": str(hold)},
            cwd=tmp_path,
            stderr=stderr,
        )

        def working() -> set[str]:
            """The nodes that have a worker."""
            assert running.poll() is None, log.read_text()
            workers = cluster.actors("RayTrainWorker")
            return {worker["node_id"] for worker in workers if worker["state"] == "ALIVE"}

        def wait_until(nodes: set[str], epochs: int) -> None:
            wait_for(lambda: working() == nodes and epoch() >= epochs, log.read_text, seconds=600)

        first = cluster.nodes[0].id
        wait_until({first}, 1)
        second = cluster.start(1)
        wait_until({first, second.id}, 1)
        begun = epoch()
        hold.unlink()
        wait_until({first, second.id}, begun + 1)
        hold.touch()
        assert epoch() < EPOCHS - 3
        cluster.stop(second, kill=True)
        wait_until({first}, begun + 1)
        hold.unlink()
        assert running.wait(600) == 0, log.read_text()
    assert_same_head(tmp_path / "model", tmp_path / "alone", atol=1e-3)
