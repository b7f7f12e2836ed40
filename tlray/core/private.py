"""Everything tlray uses of other packages that is private, or that their documentation does not name.

`tests/core/test_private.py` calls each function here and checks what it does; `tests/test_layout.py` checks
that no other module uses a private name. `pyproject.toml` allows no later minor version of Ray, Keras and
TensorFlow than those with which these tests have passed.

Ray also reads some environment variables that its documentation does not name. `cluster.session` sets them
and says why: RAY_TRAIN_HEALTH_CHECK_INTERVAL_S, RAY_TRAIN_METRICS_ENABLED, RAY_prestart_worker_first_driver,
RAY_TRAIN_ENABLE_PREEMPTION_WATCHER, RAY_ENABLE_AUTO_CONNECT (ray#31060), RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import keras
    import typer
    from pyarrow import fs

T = TypeVar("T")

# Keras and TensorFlow


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """A layer and all layers inside it, at any depth, each before those inside it.

    Private: `Layer._flatten_layers`. `Model.layers` is public, but lists one level only, and no layer that is
    inside another layer which is not a model, such as that of a `Bidirectional` (keras#4398).
    """
    layers: list[keras.Layer] = layer._flatten_layers()
    return layers


def replace_moments(layer: keras.layers.BatchNormalization, moments: Callable[[Any, Any], Any]) -> None:
    """Make a batch normalisation train with the mean and variance of `moments`.

    Args:
        layer: keeps `moments` until it is thrown away; inference does not use it.
        moments: given the inputs as float32 and their mask, or None; returns mean and variance, (channels,).

    Private: `BatchNormalization._moments`. Its public `synchronized=True` works only in the scope of a
    strategy of TensorFlow, where Keras' `fit` fails (keras#20585).
    """
    layer._moments = moments


def seed_states(model: keras.Model) -> list[Any]:
    """The variables that a model's random numbers come from, each (2,): the seed, and how many were drawn.

    Private: their name, and what they hold. `keras.random.SeedGenerator.state` is public, but the generators
    of a layer are not.
    """
    return [variable for variable in model.variables if "seed_generator_state" in variable.path]


def weighted_sum(metric: keras.metrics.Mean) -> tuple[float, float]:
    """The weighted sum that a mean has come to, and the sum of the weights.

    Undocumented: `Mean.total` and `Mean.count`. The public `result` is their quotient, from which nobody can
    compute the mean over several workers.
    """
    return float(metric.total), float(metric.count)


def start_collectives() -> object:
    """Connect this process to those that TF_CONFIG names, for `sum_over_processes`; keep what it returns.

    Undocumented: that `MultiWorkerMirroredStrategy` does so outside of its scope, too. TensorFlow has no
    public function for it, and in the scope of the strategy Keras' `fit` fails (keras#20585).
    """
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def sum_over_processes(tensor: Any, processes: int, call: int) -> Any:
    """The sum of a tensor over all processes; each must call it with the same shape and `call`.

    Args:
        tensor: of any shape, in a traced function.
        processes: how many there are.
        call: a number for this place in the graph, from 1.

    Undocumented: `tf.raw_ops.CollectiveReduceV2`, which is listed without a description. The public
    `Strategy.reduce` takes only values that were made under the strategy.
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


# Ray


def task_attempt() -> int:
    """How often Ray has tried this task before; 0 in its first attempt. Only in a task.

    Private: `ray._private.worker.global_worker` and `get_current_task_attempt_number`. The public
    `ray.get_runtime_context()` does not know it; the state API does, but it needs a dashboard.
    """
    from ray._private.worker import global_worker

    attempt: int = global_worker.core_worker.get_current_task_attempt_number()
    return attempt


def data_parallel_trainer() -> Any:
    """The class of Ray Train, version 2, that trains with any backend.

    Private: its module, `ray.train.v2.api`; the public `ray.train.data_parallel_trainer` has the class of
    version 1. The public `TensorflowTrainer` of version 2 imports TensorFlow into the command and into Ray's
    controller, for which every training would wait.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def exchange(worker_group: Any, offer: Callable[[], T], accept: Callable[[list[T], int], None]) -> None:
    """Call `offer` in every worker of a training, then `accept` in each with all offers and its rank.

    Not stable: `execute` and `execute_single` of the worker group that a `Backend` is given when it starts,
    which Ray marks as for its own developers. Its backend for TensorFlow is public, but sets Keras 2 in the
    workers (ray#64276).
    """
    offers = worker_group.execute(offer)
    for rank in range(len(offers)):
        worker_group.execute_single(rank, accept, offers, rank)


def silence_job_client() -> None:
    """Keep Ray's client for jobs from logging what it uploads.

    Private: the names of its loggers, which are those of its modules. `JobSubmissionClient` itself, which is
    public, has no switch for it.
    """
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)


# PyArrow and Typer


def with_retries(filesystem: fs.S3FileSystem, retries: int) -> fs.S3FileSystem:
    """A copy of a file system that repeats a request up to so many times when it fails.

    Private: what `S3FileSystem.__reduce__` returns, a function and the keyword arguments of the constructor.
    The constructor, which is public, takes a `retry_strategy`, but no property tells the other arguments;
    `FileSystem.from_uri` takes none, and pickle does not keep it (arrow#47348).
    """
    from pyarrow.fs import AwsDefaultS3RetryStrategy

    make, (options,) = filesystem.__reduce__()
    return make(options | {"retry_strategy": AwsDefaultS3RetryStrategy(max_attempts=retries)})


def show(error: typer.TyperException) -> None:
    """Print what was wrong with a command line, and its usage, as Typer does when it runs a command itself.

    Undocumented: `show`, which the errors have and their public class `TyperException` does not.
    """
    error.show()  # type: ignore[attr-defined]
