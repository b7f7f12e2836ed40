"""What is private in other packages still does what tlray needs, in the versions that are here."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import files
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import typer
from pyarrow import fs

from tlray.cli import app
from tlray.cluster import session
from tlray.core import private

# Keras and TensorFlow


@pytest.mark.slow
def test_flatten_layers_finds_layers_at_any_depth_and_in_layers_that_are_no_models(keras):
    layers = keras.layers
    inner = keras.Sequential([layers.Input((4, 3)), layers.Dense(3, name="deep")], name="inner")
    inputs = keras.Input((4, 3), name="inputs")
    x = layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")(inner(inputs))
    model = keras.Model(inputs, layers.Dense(1, name="last")(x), name="model")
    flat = private.flatten_layers(model)
    names = [layer.name for layer in flat]
    own = ["inputs", "inner", "both", "last"]
    assert [name for name in names if name in own] == own, "the model's layers are no longer in their order"
    assert names[0] == "model"
    inside = {"deep", "forward_lstm", "backward_lstm"}
    assert inside <= set(names), "the layers inside a model or a Bidirectional are not found"
    assert names.index("inner") < names.index("deep") < names.index("both")
    assert len({id(layer) for layer in flat}) == len(flat)
    assert all(isinstance(layer, keras.Layer) for layer in flat)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_replace_moments_decides_what_a_batch_is_normalised_by(keras, dtype):
    mean, variance = np.array([1.0, 2.0], np.float32), np.array([4.0, 9.0], np.float32)
    moments = Mock(return_value=(mean, variance))
    layer = keras.layers.BatchNormalization(momentum=0.0, epsilon=0.0, dtype=dtype)
    layer.build((None, 2))
    private.replace_moments(layer, moments)
    rows = np.array([[3.0, 8.0], [5.0, 2.0]], np.float32)
    outputs = keras.ops.convert_to_numpy(keras.ops.cast(layer(rows, training=True), "float32"))
    calls = [(inputs.dtype.name, mask) for (inputs, mask), _ in moments.call_args_list]
    assert calls == [("float32", None)], (
        "batch normalisation no longer asks _moments, or with other arguments"
    )
    np.testing.assert_allclose(outputs, [[1, 2], [2, 0]], rtol=1e-2)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance)
    layer(rows, training=False)
    assert moments.call_count == 1, "inference asks for the moments of the batch"


@pytest.mark.slow
def test_seed_states_are_all_that_dropout_depends_on(keras):
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
    rows = np.ones((1, 100), np.float32)

    def drop():
        return keras.ops.convert_to_numpy(model(rows, training=True))

    states = private.seed_states(model)
    assert [tuple(state.shape) for state in states] == [(2,), (2,)], "the states have another name or shape"
    before = [state.numpy() for state in states]
    first, second = drop(), drop()
    assert not np.array_equal(first, second)
    for state, was in zip(states, before, strict=True):
        assert state.numpy().tolist() == [was[0], was[1] + 2]
        state.assign(was)
    np.testing.assert_array_equal(drop(), first)
    for state, was in zip(states, before, strict=True):
        state.assign([(int(was[0]) + 1) % 2**32, int(was[1])])
    assert not np.array_equal(drop(), first), "another seed does not make another dropout"


@pytest.mark.slow
def test_weighted_sum_is_what_the_mean_is_made_of(keras):
    metric = keras.metrics.MeanMetricWrapper(lambda true, predicted: predicted[:, 0])
    values, weights = np.array([[1.0], [2.0], [6.0]]), np.array([1.0, 1.0, 0.5])
    metric.update_state(np.zeros((3, 1)), values, sample_weight=weights)
    assert private.weighted_sum(metric) == (6.0, 2.5)
    metric.update_state(np.zeros((1, 1)), np.array([[4.0]]))
    assert private.weighted_sum(metric) == (10.0, 3.5)
    metric.reset_state()
    assert private.weighted_sum(metric) == (0.0, 0.0)


ADD = """
import sys
from tlray.core.runtime import prepare_keras

prepare_keras(gpu=False)
import tensorflow as tf
from tlray.core import private

kept = private.start_collectives()

@tf.function(autograph=False)
def add(first, second):
    return private.sum_over_processes(first, 2, 1), private.sum_over_processes(second, 2, 2)

rank = float(sys.argv[1])
for step in range(3):
    first, second = add(tf.constant([rank, step]), tf.constant([[10.0 ** rank]]))
    print(first.numpy().tolist(), second.numpy().tolist())
"""


@pytest.mark.slow
def test_sum_over_processes_adds_what_two_processes_have():
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in (first, second)]
    running = []
    for rank in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        command, pipe = [sys.executable, "-c", ADD, str(rank)], subprocess.PIPE
        running.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    try:
        for process in running:
            try:
                printed, errors = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                pytest.fail("the two processes wait for each other in vain: no collectives were started")
            assert process.returncode == 0, errors
            assert printed.splitlines() == [f"[1.0, {2.0 * step}] [[11.0]]" for step in range(3)]
    finally:
        for process in running:
            process.kill()
            process.wait()


# Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with session.connect(None, cpus=2) as connected:
        connected()
        import ray

        yield ray


@pytest.mark.slow
def test_task_attempt_counts_the_attempts_of_a_task(ray):
    @ray.remote(max_retries=2, num_cpus=0)
    def survive(deaths: int) -> int:
        if private.task_attempt() < deaths:
            os._exit(1)
        return private.task_attempt()

    assert ray.get([survive.remote(0), survive.remote(1), survive.remote(2)], timeout=120) == [0, 1, 2]


@pytest.mark.slow
def test_a_trainer_takes_a_backend_that_exchanges_what_workers_offer(ray, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.backend import Backend, BackendConfig

    def accept(offers, rank):
        os.environ["TEST_EXCHANGE"] = f"{rank} of {len(offers)}: {offers[rank] == os.getpid()}"

    class Exchanging(Backend):
        def on_start(self, worker_group, backend_config):
            private.exchange(worker_group, os.getpid, accept)

    class Config(BackendConfig):
        @property
        def backend_cls(self):
            return Exchanging

    def loop(config):
        rank = ray.train.get_context().get_world_rank()
        (tmp_path / f"rank {rank}").write_text(os.environ["TEST_EXCHANGE"])
        return config["greeting"], rank

    trainer = private.data_parallel_trainer()(
        loop,
        train_loop_config={"greeting": "hello"},
        backend_config=Config(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(tmp_path)),
    )
    assert trainer.fit().return_value == ("hello", 0), "fit no longer returns what the first worker does"
    exchanged = [(tmp_path / f"rank {rank}").read_text() for rank in range(2)]
    assert exchanged == ["0 of 2: True", "1 of 2: True"], "the offers are not in the order of the ranks"


def test_silence_job_client_reaches_the_loggers_of_rays_client(monkeypatch):
    pytest.importorskip("aiohttp")
    from ray.job_submission import JobSubmissionClient

    modules = [kind.__module__ for kind in JobSubmissionClient.__mro__]
    loggers = [logging.getLogger(module) for module in modules if module != "builtins"]
    assert len(loggers) == 2
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    private.silence_job_client()
    assert [logger.level for logger in loggers] == [logging.ERROR] * 2, f"the client logs to {loggers}"


def test_environment_variables_without_documentation_are_listed_and_ray_reads_them():
    documented = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_BACKEND_LOG_LEVEL", "RAY_USAGE_STATS_ENABLED"}
    documented |= {"TF_CPP_MIN_LOG_LEVEL"}
    used = set(re.findall(r'"((?:RAY|TF)_\w+)"', Path(session.__file__).read_text())) - documented
    listed = set(re.findall(r"\bRAY_\w+", private.__doc__))
    assert listed == used
    # Those of Ray's C++ code are made of RAY_ and the name of a setting.
    wanted = {name.removeprefix("RAY_").encode() if name[4].islower() else name.encode() for name in used}
    for file in files("ray"):
        if file.suffix in (".py", ".so") and not {"tests", "thirdparty_files"} & set(file.parts):
            content = file.locate().read_bytes()
            wanted = {name for name in wanted if name not in content}
    assert not wanted, "Ray no longer reads these"


@pytest.mark.parametrize(
    ("variable", "code", "printed"),
    [
        (
            "RAY_ENABLE_AUTO_CONNECT",
            "try:\n    ray.put(1)\nexcept ray.exceptions.RaySystemError:\n    print('no Ray')",
            "no Ray\n",
        ),
        # Ray then takes the loopback address, as on systems without clusters.
        ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "print(ray.util.get_node_ip_address())", "127.0.0.1\n"),
    ],
)
def test_ray_obeys_a_variable_without_documentation(variable, code, printed):
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command, environment = [sys.executable, "-c", f"import ray.util\n{code}"], {**outer, variable: "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == printed


# PyArrow and Typer


@pytest.fixture
def busy_server() -> Iterator[tuple[int, list[str]]]:
    """A server that answers every request with 503, by its port and the credentials of the requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append(self.headers["Authorization"])
            self.send_response(503)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("retries", [0, 4])
def test_with_retries_keeps_all_else(busy_server, retries):
    port, requests = busy_server
    options = f"region=eu-west-3&endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}"
    filesystem, path = fs.FileSystem.from_uri(f"s3://my-key:my-secret@bucket/name?{options}")
    patient = private.with_retries(filesystem, retries)
    assert patient.region == "eu-west-3"
    with pytest.raises(OSError, match="503"):
        patient.get_file_info(path)
    assert len(requests) == retries + 1
    assert all("Credential=my-key/" in given and "/eu-west-3/s3/" in given for given in requests)


def test_show_prints_usage_and_error(capsys):
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def greet(name: str):
        pass

    with pytest.raises(typer.TyperException) as caught:
        app(["--wrong"], standalone_mode=False)
    private.show(caught.value)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage: ")
    assert "No such option: --wrong" in printed.err


def test_arguments_are_listed_by_what_the_help_calls_them():
    root = typer.main.get_command(app)
    context = Mock(find_root=lambda: Mock(command=root))
    words = ["extract", "photos", "--out", "features", "--batch-size", "many"]
    arguments = private.arguments(context, words)
    assert {("IMAGES", "photos"), ("FOLDER", "features")} <= set(arguments)
    assert ("NAME", "x") in private.arguments(context, ["plugins", "show", "x"])
    assert private.arguments(context, ["nosuch"]) == []
