"""A Ray of several nodes: each is asked beforehand whether it can do its share, and is used."""

import os
from collections.abc import Mapping
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlray.cluster import nodes, session
from tlray.core.errors import JobError, UserError
from tlray.core.manifest import package_versions
from tlray.core.storage import Folder
from tlray.features.extract import extract
from tlray.images.reader import ImageProbe, Place

pytestmark = pytest.mark.slow

VERSIONS = package_versions()
PLUGIN = "tlray-test-plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What a second node has installed beside all else: a plugin of another version than here."""
    folder = tmp_path_factory.mktemp("site")
    for place, version in (("here", "1.0"), ("there", "2.0")):
        info = folder / place / f"tlray_test_plugin-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: {version}\n")
    return folder


@pytest.fixture(scope="module")
def two_nodes(site):
    """This process is connected to the first of two nodes with a CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    session._prepare(None)
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(site / "here"))
        cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(site / "there")})
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(300):
        pixels = noise.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def memory():
    """A file system of which every process has one of its own, as a node has its local disk."""
    yield fsspec.filesystem("memory")
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.mark.parametrize("image", ["000.png", "missing.png"])
def test_nodes_that_are_as_they_should_be(two_nodes, images, tmp_path, image):
    """An image that nobody can read is no fault of a node."""
    nodes.check(VERSIONS, Folder.open(tmp_path), ImageProbe(Folder.open(images), Place(image)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({PLUGIN: "1.0"}, f"has {PLUGIN} 2.0, and the job was started with 1.0: install the same there"),
        ({"tlray-other": "3"}, "has no tlray-other, and the job was started with 3: install the same there"),
    ],
)
def test_a_node_with_other_packages_is_refused(two_nodes, tmp_path, versions, reason):
    with pytest.raises(UserError) as caught:
        nodes.check({**VERSIONS, **versions}, Folder.open(tmp_path))
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_of_which_every_node_has_its_own_is_refused(two_nodes, memory, images):
    out = Folder.open("memory://out")
    with pytest.raises(UserError, match=r"another memory://out .* choose a place that all nodes share"):
        nodes.check(VERSIONS, out, ImageProbe(Folder.open(images), Place("000.png")))
    assert out.names() == []


def test_images_that_a_node_does_not_see_are_refused(two_nodes, memory, images, tmp_path):
    memory.put(f"{images}/", "/images", recursive=True)
    reason = r"cannot read .*images/000\.png, which .* can .*every node sees them"
    with pytest.raises(UserError, match=reason):
        extract("memory://images", tmp_path / "set", backbone="grey-pixels")
    assert os.listdir(tmp_path) == []


def train(storage: str, packages: Mapping[str, str]) -> None:
    """As `fit` and `finetune` do it."""
    from tlray.training import ray_workers

    def nothing(settings, worker) -> None:
        raise AssertionError("it has begun")

    options = {"packages": packages, "streaming": False, "report": lambda metrics: None}
    ray_workers.run(nothing, {}, storage=Folder.open(storage), workers=(2, 2), **options)


def test_no_training_on_a_node_with_other_packages_or_a_folder_of_its_own(two_nodes, memory, tmp_path):
    with pytest.raises(UserError, match=f"node .* has {PLUGIN} 2.0, and the job was started with 1.0"):
        train(str(tmp_path), {**VERSIONS, PLUGIN: "1.0"})
    with pytest.raises(UserError, match=r"another memory://model .* choose a place that all nodes share"):
        train("memory://model", VERSIONS)


def test_a_process_with_other_packages_does_no_work():
    nodes.agree(VERSIONS)
    with pytest.raises(JobError, match=r"node .* has tlray .*, and the job was started with 0\.0"):
        nodes.agree({"tlray": "0.0"})


def test_a_node_that_joins_later_with_other_packages_fails_the_job(two_nodes, images, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "check", lambda *given: None)  # It was not there to be asked.
    monkeypatch.setattr("tlray.features.extract.package_versions", lambda *plugins: {"tlray": "0.0"})
    with pytest.raises(JobError, match=r"has tlray .*, and the job was started with 0\.0"):
        extract(images, tmp_path / "set", backbone="grey-pixels")


def test_the_processes_that_hold_the_network(two_nodes):
    assert nodes.pool(None, 1.0) == (2, 2, 0.0, 0.4, 0.5)
    assert nodes.pool((5, 5), 1.0) == (5, 5, 0.0, 0.4, 0.5)
    for least, most, of_a_node in ((1, 5, 1), (3, 4, 2)):
        pool = nodes.pool((least, most), 1.0)
        assert (pool.least, pool.most, pool.gpus) == (least, most, 0.0)
        # One more does not fit; a task that decodes does, and the one that reads the index.
        assert round(of_a_node * pool.cpus + pool.decode_cpus + 0.05, 4) <= 1 < (of_a_node + 1) * pool.cpus
    with pytest.raises(UserError, match=r"--gpus-per-actor 0\.5: this Ray has no GPU"):
        nodes.pool(None, 0.5)


def test_two_nodes_extract(two_nodes, images, tmp_path):
    """Though none has a whole CPU left beside the network."""
    result = extract(images, tmp_path / "set", backbone="grey-pixels", actors="2")
    assert (result.images, result.rows, result.errors) == (300, 300, 0)
    parts = (tmp_path / "set").glob("part-*")
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 300


def test_a_gpu_that_tensorflow_does_not_find(two_nodes, images, tmp_path):
    """The last test: the node stays."""
    two_nodes.add_node(num_cpus=2, num_gpus=2)
    assert nodes.pool(None, 1.0) == (2, 2, 1.0, 0.4, 1.0)
    assert nodes.pool(None, 0.5) == (4, 4, 0.5, 0.4, 1.0)
    assert nodes.pool((1, 5), 1.0) == (1, 5, 1.0, 0.4, 1.0)
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(JobError, match=r"Ray has a GPU on node .*, and TensorFlow finds none"):
        extract(images, tmp_path / "set", backbone="grey-pixels")
