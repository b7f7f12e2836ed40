"""Everything that tlray uses of other packages although it is private or undocumented.

`tests/core/test_private.py` tests each function here; `tests/test_layout.py` checks that no other module uses
a private name. `pyproject.toml` allows no later minor version of Ray, Keras and TensorFlow than they passed.

`cluster.session` sets these environment variables, which Ray reads but does not document, and says why:
RAY_TRAIN_HEALTH_CHECK_INTERVAL_S, RAY_TRAIN_METRICS_ENABLED, RAY_TRAIN_ENABLE_PREEMPTION_WATCHER,
RAY_prestart_worker_first_driver, RAY_ENABLE_AUTO_CONNECT (ray#31060), RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import keras
    import typer
    from pyarrow import fs

T = TypeVar("T")
_REFUSAL = 1 << 16
"""More bytes than the text of a refusal by S3 has."""


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """A layer and all layers inside it at any depth, each before the layers inside it.

    Private: `Layer._flatten_layers`. The public `Model.layers` lists one level only, and misses layers inside
    a layer that is not a model, e.g. a `Bidirectional` (keras#4398).
    """
    return list(layer._flatten_layers())


def replace_moments(layer: keras.layers.BatchNormalization, moments: Callable[[Any, Any], Any]) -> None:
    """Make a batch normalisation train with the mean and variance, each (channels,), that `moments` returns.

    `moments` gets the float32 inputs and their mask or None. Private: `BatchNormalization._moments`. The
    public `synchronized=True` needs a strategy's scope, where Keras' `fit` fails (keras#20585).
    """
    layer._moments = moments


def seed_states(model: keras.Model) -> list[Any]:
    """The states of a model's random generators, each a variable (2,): the seed and the number of draws.

    Private: their name and content. Layers have no public list of their `SeedGenerator`s.
    """
    return [variable for variable in model.variables if "seed_generator_state" in variable.path]


def weighted_sum(metric: keras.metrics.Mean) -> tuple[float, float]:
    """The weighted sum that a mean has added up, and the sum of the weights.

    Undocumented: `Mean.total` and `Mean.count`. A mean over several workers needs both; the public `result`
    is their quotient.
    """
    return float(metric.total), float(metric.count)


def start_collectives() -> object:
    """Connect this process to those that TF_CONFIG names, for as long as the result is kept.

    Undocumented: `MultiWorkerMirroredStrategy` also connects without its scope, in which Keras' `fit` fails
    (keras#20585). TensorFlow has no public function that only connects.
    """
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def sum_over_processes(tensor: Any, processes: int, call: int) -> Any:
    """The sum of a tensor over all processes, for traced functions; each process must pass the same shape.

    `call` numbers the places in the graph that sum, from 1. Undocumented: `tf.raw_ops.CollectiveReduceV2` is
    listed without a description. The public `Strategy.reduce` takes only values made under the strategy.
    """
    import tensorflow as tf

    return tf.raw_ops.CollectiveReduceV2(
        input=tensor,
        group_size=processes,
        group_key=1,
        instance_key=call,
        ordering_token=[],
        merge_op="Add",
        final_op="Id",
    )


def task_attempt() -> int:
    """The number of earlier attempts of the Ray task that calls this.

    Private: `ray._private.worker.global_worker` and `get_current_task_attempt_number`. The public runtime
    context lacks the number, and Ray's state API needs a dashboard.
    """
    from ray._private.worker import global_worker

    return int(global_worker.core_worker.get_current_task_attempt_number())


def data_parallel_trainer() -> Any:
    """The trainer class of Ray Train version 2 that works with any backend.

    Private: its module `ray.train.v2.api`; the public module has the class of version 1. The public
    `TensorflowTrainer` imports TensorFlow into the driver and Ray's controller, which delays every training.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def exchange(worker_group: Any, offer: Callable[[], T], accept: Callable[[list[T], int], None]) -> None:
    """Call `offer` in every training worker, then `accept` in each with all offers and the worker's rank.

    Not stable: `execute` and `execute_single` of the worker group, which Ray keeps for its own developers.
    Ray's public TensorFlow backend exchanges the same, but makes the workers use Keras 2 (ray#64276).
    """
    offers = worker_group.execute(offer)
    for rank in range(len(offers)):
        worker_group.execute_single(rank, accept, offers, rank)


def silence_job_client() -> None:
    """Keep Ray's client for jobs from logging what it uploads.

    Private: the names of its loggers, for which the public `JobSubmissionClient` has no switch.
    """
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)


def upload_package(client: Any, path: str) -> str:
    """Upload a zip file to a cluster, unless the cluster has it, and return its URI for `py_modules`.

    Private: `_upload_package_if_needed` of Ray's client for jobs. The public `py_modules` puts the content of
    a folder into another folder, and installs wheels without a lock (ray#49059).
    """
    return str(client._upload_package_if_needed(path, include_gitignore=False, is_file=True))


def with_retries(filesystem: fs.S3FileSystem, retries: int) -> fs.S3FileSystem:
    """A copy of a file system that repeats a failed request up to `retries` times.

    Private: `S3FileSystem.__reduce__` returns the keyword arguments of the constructor, which no property
    does. `FileSystem.from_uri` takes no `retry_strategy`, and pickle loses it (arrow#47348).
    """
    from pyarrow.fs import AwsDefaultS3RetryStrategy

    make, (options,) = filesystem.__reduce__()
    return make(options | {"retry_strategy": AwsDefaultS3RetryStrategy(max_attempts=retries)})


def fills(file: Any, view: memoryview, mark: int) -> bool:
    """Read from a file into a buffer, and return whether the answer filled it; another `mark` is surer.

    Undocumented: `S3FileSystem`'s files return the length that was asked for, whatever the answer had, but
    they write only what came. The mark, a byte, then stays at the end of the buffer. The zeros end the text
    of a refusal, which S3's client parses in the same buffer.
    """
    view[:_REFUSAL] = bytes(min(_REFUSAL, len(view)))
    view[-1] = mark
    return bool(file.readinto(view) == len(view) and view[-1] != mark)


def arguments(context: typer.Context, words: Sequence[str]) -> list[tuple[str, str]]:
    """The texts that words give to a command of the app, each with what `--help` calls it; despite mistakes.

    Undocumented: `find_root` of the context of a running command, and `commands`, `make_context` and `params`
    of a command; Typer leaves these to the documentation of Click.
    """
    command: Any = context.find_root().command
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    values = command.make_context("", [*words], resilient_parsing=True).params
    pairs = [(param.metavar, values.get(param.name)) for param in command.params]
    return [(metavar, value) for metavar, value in pairs if metavar and isinstance(value, str)]


def show(error: typer.TyperException) -> None:
    """Print an error in a command line and the usage, as Typer does when it runs a command itself.

    Undocumented: `show`, which every error has, but not their public base class `TyperException`.
    """
    error.show()  # type: ignore[attr-defined]
