"""Jobs on a real Ray of two nodes and more, sent from where there is a plugin that the nodes do not have."""

import json
import os
import re
import shlex
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.cluster.test_submit import ODD, PROJECT, SECRET, pip
from tests.support.outputs import assert_same_head, read, same
from tests.support.processes import wait_for
from tests.support.ray_cluster import BIN, Node, RayCluster, left, ray_cluster
from tlray.recipes.demo import write_digits

PLUGIN = '''
import os, time
from tlray.models.interfaces import Backbone

STARTED = time.time()

class Third(Backbone):
    """A plugin of someone else."""
    name = "third"
    image_size = 32
    cuts = ("lower", "upper")

    def build(self, image_size):
        import keras
        layers = keras.layers
        pixels = keras.Input((image_size, image_size, 3), name="input")
        x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1")(pixels)
        x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv2")(x)
        x = layers.MaxPooling2D(2, name="lower")(x)
        x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv3")(x)
        return keras.Model(pixels, layers.MaxPooling2D(2, name="upper")(x), name=self.name)

    def preprocess(self, pixels):
        import keras
        pixels = keras.layers.Rescaling(1 / 255, name="rescale")(pixels)
        return waiting(pixels) if "HOLD" in os.environ else pixels

def waiting(pixels):
    """In processes that are older than the file $HOLD, as long as there is one."""
    import keras, tensorflow

    def wait(values):
        hold = os.environ["HOLD"]
        while len(values) > 1 and os.path.exists(hold) and os.path.getmtime(hold) > STARTED:
            time.sleep(0.1)
        return values

    class Waiting(keras.layers.Layer):
        def call(self, values):
            waited = tensorflow.numpy_function(wait, [values], values.dtype)
            waited.set_shape(values.shape)
            return waited

    return Waiting()(pixels)
'''
"""Without dropout, so that any number of workers trains the same."""
EXTRACT = ("--backbone", "third", "--precision", "float32", "--max-bad-fraction", "0.1", "--json")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """An environment's packages, installed from wheels: tlray, its plugins, and one of someone else."""
    project, wheels, site = (tmp_path_factory.mktemp(name) for name in ("project", "wheels", "site"))
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "third_party.py").write_text(PLUGIN)
    sources = [project, ROOT, *(ROOT / "plugins").iterdir()]
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, *sources)
    pip("install", "--no-deps", "--target", site, *wheels.glob("*.whl"))
    return site


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """1,797 handwritten digits, with splits, and a bad image."""
    folder = tmp_path_factory.mktemp("images") / ODD
    write_digits(str(folder))
    (folder / "train" / "3" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cluster(server) -> Iterator[RayCluster]:
    """Two nodes, which stay and have an s3://bucket; a test may add others."""
    with ray_cluster([2, 1]) as cluster:
        yield cluster
    assert left(cluster.folder) == []
    assert not cluster.folder.exists()


@pytest.fixture
def added(cluster) -> Iterator[list[Node]]:
    """Nodes that end with the test."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        cluster.stop(node)
    wait_for(lambda: len(cluster.alive()) == 2)


@pytest.fixture(scope="module")
def command(cluster, site, tmp_path_factory):
    """Starts the command line in the environment that has the plugin, away from the checkout."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BIN / "tlray", *words],
            cwd=elsewhere,
            env={**cluster.environment(), "PYTHONPATH": str(site), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def tlray(command):
    """Runs the command line to its end."""

    def run(*words: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        return end(command(*words, **environment), status)

    return run


def end(running: subprocess.Popen[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    """Wait for a command."""
    try:
        output, errors = running.communicate(timeout=1200)  # On a busy machine.
    finally:
        running.kill()
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    return subprocess.CompletedProcess(running.args, status, output, errors)


def networks(cluster: RayCluster, node: Node, running: subprocess.Popen[str]) -> list[str]:
    """The actors on a node that have loaded the network, as long as the command runs."""
    if running.poll() is not None:
        raise AssertionError(running.communicate())
    actors = cluster.actors("NetworkActor")
    return [one["actor_id"] for one in actors if (one["state"], one["node_id"]) == ("ALIVE", node.id)]


# Jobs on several nodes


def hold(file: Path) -> str:
    """Makes the networks of a job with this $HOLD wait, or the first might do all before there are others."""
    file.touch()
    os.utime(file, (2**32, 2**32))
    return str(file)


@pytest.fixture(scope="module")
def extracted(command, images, cluster, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The features that two nodes make after a third, which had the network and images too, was killed."""
    out, file = tmp_path_factory.mktemp("job") / ODD, tmp_path_factory.mktemp("hold") / "hold"
    doomed = cluster.start(2)
    words = ("extract", str(images), "--out", str(out), *EXTRACT)
    sent = ("submit", "--json", "--name", "my.job", "--env", "HOLD", "--env", "TOKEN", "--", *words)
    running = command(*sent, HOLD=hold(file), TOKEN=SECRET)
    wait_for(lambda: all(networks(cluster, node, running) for node in cluster.nodes), seconds=600)
    cluster.stop(doomed, kill=True)
    file.unlink()
    return out, end(running)


def test_a_killed_node_costs_no_image_and_the_others_tell_how_much_they_did(extracted, cluster):
    found = json.loads(extracted[1].stdout)["result"]
    assert (found["images"], found["rows"], found["errors"]) == (1798, 1797, 1)
    assert len(read(extracted[0])) == 1797
    nodes = found["time"]["nodes"]
    assert {node["node"] for node in nodes} == cluster.alive()
    # The actor of the lost node may start again where there is room for a second one.
    assert sorted(node["actors"] for node in nodes) in ([1, 1], [1, 2])
    assert sum(node["rows"] for node in nodes) == 1797
    assert min(node["rows"] for node in nodes) > 0
    busy = found["time"]["network"] + found["time"]["writing"]
    assert sum(node["seconds"] for node in nodes) == pytest.approx(busy, abs=0.01)


def test_a_plugin_that_the_cluster_has_not_goes_along(extracted, tlray, cluster):
    """Quoting, credentials, the plugin in driver, tasks and actors, progress and the result."""
    out, done = extracted
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["job"].startswith("my.job-")
    assert (found["status"], found["exit_status"], found["installed"]) == ("succeeded", 0, [])
    plugins = [path.name for path in (ROOT / "plugins").iterdir()]
    assert [one.split()[0] for one in found["shipped"]] == ["tlray", *sorted(["third-party", *plugins])]
    assert "1,798 of 1,798 images" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["provenance"]["package"].startswith("third-party 1.2+")
    jobs = json.loads(tlray("jobs", "list", "--json").stdout)["jobs"]
    (job,) = (one for one in jobs if one["job"].startswith("my.job"))
    assert (job["job"], job["status"]) == (found["job"], "succeeded")
    assert job["command"].startswith("tlray extract")
    ray = cluster.ask(f"api/jobs/{found['job']}")
    assert ray["driver_info"] is not None  # Not a Ray of its own, beside the cluster.
    assert (ray["metadata"]["job_name"], ray["metadata"]["command"]) == ("my.job", job["command"])
    there = [BIN / "tlray", "plugins", "list"]
    there = subprocess.run(there, env=cluster.environment(), capture_output=True, text=True, check=True)
    assert "third" not in there.stdout


def test_a_node_that_comes_later_is_used(extracted, command, images, cluster, added, tmp_path):
    out, file = tmp_path / "set", tmp_path / "hold"
    words = ("extract", str(images), "--out", str(out), *EXTRACT, "--actors", "1-2")
    running = command("submit", "--json", "--env", "HOLD", "--", *words, HOLD=hold(file))
    wait_for(lambda: networks(cluster, cluster.nodes[0], running), seconds=600)
    os.utime(file)  # From now on the first waits, and those that come do not.
    added.append(new := cluster.start(2))
    wait_for(lambda: list(out.glob("part-*")), seconds=600)
    file.unlink()
    found = json.loads(end(running).stdout)["result"]
    assert (found["images"], found["rows"], found["errors"]) == (1798, 1797, 1)
    assert same(read(out), read(extracted[0]))
    rows = {node["node"]: node["rows"] for node in found["time"]["nodes"]}
    assert rows.keys() == {cluster.nodes[0].id, new.id}
    assert rows[new.id] > 0


@pytest.fixture(scope="module")
def job(tlray, extracted, images, cluster, tmp_path_factory) -> dict[str, Any]:
    """What each command of a chain has printed, by name; and its folder, and Ray's workers."""
    out = tmp_path_factory.mktemp("chain")
    two = ("--workers", "2")
    training = ("--batch-size", "64", "--optimizer", "adam", "--learning-rate", "0.01", "--json")
    head = ("fit", str(extracted[0]), "--head", "linear", "--epochs", "10", *training)
    tuning = ("--model", f"{out}/head", "--from", "conv3", "--epochs", "1", "--max-bad-fraction", "0.1")
    lines = {
        "plan": ("plan", str(images), "--cluster", "--sample", "16", "--backbone", "third", "--json"),
        "head": (*head, *two, "--out", f"{out}/head"),
        "tuned": ("finetune", f"{images}/train", *tuning, *training, *two, "--out", f"{out}/tuned"),
        "score": ("evaluate", f"{out}/tuned", str(images), "--max-bad-fraction", "0.1", "--json"),
    }
    before = {actor["actor_id"] for actor in cluster.actors("RayTrainWorker")}
    chain = [f"tlray {shlex.join(words)} > {out}/{name}.json" for name, words in lines.items()]
    tlray("submit", "--", " && ".join(chain))
    tlray(*head, "--out", f"{out}/alone")
    workers = [one for one in cluster.actors("RayTrainWorker") if one["actor_id"] not in before]
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in lines}
    return {"out": out, "workers": workers, **found}


def test_two_workers_on_two_nodes_train_what_one_does(job, cluster):
    on: defaultdict[str, set[str]] = defaultdict(set)
    for worker in job["workers"]:
        on[worker["job_id"]].add(worker["node_id"])
    assert list(map(len, on.values())) == [2, 2]  # In `fit` and in `finetune`.
    assert set.union(*on.values()) == {node.id for node in cluster.nodes[:2]}
    assert_same_head(job["out"] / "head", job["out"] / "alone", atol=1e-5)


def test_what_two_nodes_trained_is_good(job):
    assert job["head"]["metrics"]["val_accuracy"] > 0.85
    assert (job["score"]["images"], job["score"]["split"]) == (359, "test")
    assert job["score"]["accuracy"] > 0.9


def test_a_plan_says_how_an_extraction_would_spread(job):
    found = job["plan"]
    assert (found["images"], found["sample"], found["sample_errors"], found["gpus"]) == (1798, 16, 0, 0)
    kinds = sorted((kind["cpus"], kind["nodes"], kind["actors"]) for kind in found["kinds"])
    assert kinds == [(1, 1, 1), (2, 1, 1)]
    assert all(kind["decode_ms"] > 0 and kind["network_ms"] > 0 for kind in found["kinds"])
    slowest = max(kind["network_ms"] for kind in found["kinds"])
    assert found["images_per_second"] > 1000 / (
        slowest + 2 * max(kind["decode_ms"] for kind in found["kinds"])
    )
    assert found["seconds"] == pytest.approx(1798 / found["images_per_second"], abs=0.1)


# Sending jobs


def test_the_command_of_the_readme(tlray, cluster, server, images):
    """As it stands, but for the address; on S3 the nodes find a server on this machine."""
    (line,) = re.findall(r"^tlray (submit .*)", (ROOT / "README.md").read_text(), re.M)
    pictures = [*images.glob("validation/[38]/*.png")][:6]
    server.put((f"bucket/photos/{path.relative_to(images)}", path.read_bytes()) for path in pictures)
    done = tlray(*shlex.split(line.replace("http://HEAD:8265", cluster.dashboard)))
    assert "6 of 6 images" in done.stderr
    assert len(read("bucket/features", server.filesystem())) == len(pictures) == 6


ON_EACH_NODE = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote
def seen():
    from tlray.models import registry
    return registry.find("backbones", "third").package

ray.init(log_to_driver=False)
on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
print(ray.get([seen.options(scheduling_strategy=one).remote() for one in on]))
"""


def test_a_chain_sees_the_plugin_on_each_node_and_ends_with_its_status(tlray, tmp_path):
    (tmp_path / "each.py").write_text(ON_EACH_NODE)
    line = (
        f'tlray plugins show third && python {tmp_path}/each.py && echo "$NAME" '
        f"&& tlray inspect '{tmp_path}/none' && tlray recipes list"
    )
    done = tlray("submit", "--env", "NAME", "--", line, status=2, NAME=SECRET)
    assert "A plugin of someone else." in done.stderr
    assert "['third-party', 'third-party']" in done.stderr
    assert "none does not exist" in done.stderr
    assert "vgg16-features" not in done.stderr
    assert SECRET not in done.stderr
    assert "exit status 2" in done.stderr.splitlines()[-1]


def test_a_job_is_left_alone_and_found_and_stopped(tlray, cluster, site, tmp_path):
    """Without waiting; and after Ctrl-C, which ends the watching and not the job."""
    (tmp_path / "wait").write_text("")
    line = f"tlray --version; while [ -e {tmp_path}/wait ]; do sleep 0.2; done"
    first = json.loads(tlray("submit", "--no-wait", "--json", "--", line).stdout)["job"]
    watching = subprocess.Popen(
        [BIN / "tlray", "submit", "--name", "watched", "--", line],
        env={**cluster.environment(), "PYTHONPATH": str(site)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert watching.stderr is not None
    for printed in watching.stderr:
        if printed.startswith("tlray 0."):
            break
    watching.send_signal(signal.SIGINT)
    last = watching.stderr.read().splitlines()[-1]
    assert watching.wait(60) == 130
    second = last.split()[2]
    assert second.startswith("watched-")
    assert f"tlray jobs stop {second} --address {cluster.dashboard}" in last
    listed = {job["job"]: job["status"] for job in json.loads(tlray("jobs", "list", "--json").stdout)["jobs"]}
    assert (listed[first], listed[second]) == ("running", "running")
    assert "stopped" in tlray("jobs", "stop", second).stdout
    (tmp_path / "wait").unlink()
    assert "tlray 0." in tlray("jobs", "logs", first, "--follow").stderr
    assert "tlray 0." in tlray("jobs", "logs", first).stdout
    assert second.partition("-")[0] in tlray("jobs", "logs", "watched-0", status=2).stderr


def test_the_token_is_asked_for(tlray):
    for token in ("", "wrong"):
        done = tlray("jobs", "list", status=2, RAY_AUTH_TOKEN=token, HOME="/nowhere")
        assert "RAY_AUTH_TOKEN" in done.stderr
        assert len(done.stderr.splitlines()) <= 2
