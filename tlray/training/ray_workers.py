"""Runs the training loop on N Ray Train workers and brings back what they report."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.util.queue import Empty, Queue

from tlray.cluster import nodes, session
from tlray.core import private
from tlray.core.errors import JobError, TlrayError, UserError
from tlray.core.storage import Folder
from tlray.training.view_stream import STREAM_CPUS
from tlray.training.worker.task import Worker

Report = Callable[[dict[str, float]], None]
_FAILURES, _LOSSES = 3, 30
"""How often training may fail, and how often where nodes are expected to go."""
_RESIZE_SECONDS = 60
"""How often it is looked whether there is room for more workers, which costs the epoch that is under way."""


class RayWorker:
    """The `Worker` of a training on Ray; its checkpoints lie in the storage of the run."""

    def __init__(self, report: Report) -> None:
        """Be the worker that Ray Train has made of this process.

        Args:
            report: called by the first worker with the metrics of each epoch.
        """
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.count: int = context.get_world_size()
        self.report: Report = report if self.rank == 0 else lambda metrics: None
        # A worker runs in a folder of Ray's, which Ray removes if the worker is killed.
        self.scratch: str | None = "."

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        """The folder of the last checkpoint of this run, of an earlier driver too, while the block lasts."""
        checkpoint = ray.train.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            yield folder

    def save(self, folder: str | None) -> None:
        """Keep a copy of this folder as the checkpoint; all workers call it together, one has a folder."""
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if folder else None)


class _TensorFlowBackend(Backend):
    """Tells TensorFlow where the other workers are."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        private.exchange(worker_group, _free_address, _set_tf_config)


class _TensorFlowConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


def _free_address() -> str:
    """An address of this node, with a port that is free now."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(task)


def check(workers: int, streaming: bool) -> int:
    """Whether so many workers can be; gives the GPUs of this Ray.

    Raises:
        UserError: there are not enough CPUs or GPUs.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    available = min(gpus or workers, int(cpus / (1 + STREAM_CPUS if streaming else 1)))
    if workers > available:
        raise UserError(
            f"--workers or --min-workers {workers}: expected at most {available}, for which this Ray has "
            f"CPUs and GPUs ({cpus:g} and {gpus}); with --min-workers a training can begin with fewer"
        )
    return gpus


def run(
    train: Callable[[Any, Worker], Any],
    task: Any,
    *,
    workers: tuple[int, int],
    storage: Folder,
    packages: Mapping[str, str],
    streaming: bool,
    report: Report,
) -> Any:
    """Train on every worker, from the last checkpoint in the storage if there is one.

    Args:
        train: called in each worker with the task and the worker.
        task: lies in Ray's object store, once for each node, where its arrays are read without a copy.
        workers: the least and the most. If fewer than the most are there, it goes on from the last checkpoint
            with as many as there is room for, and again with more when there is.
        storage: a folder that all nodes see, for checkpoints and Ray Train's own state.
        packages: the versions that every process must have.
        streaming: each worker also needs room for tasks that decode and an actor with the frozen network.
        report: called here with what the first worker reports of each epoch.

    Returns:
        What `train` returned on the first worker.

    Raises:
        UserError: raised by `train`, or as of `check` and `nodes.check`.
        JobError: training failed.
    """
    least, most = workers
    gpus = check(least, streaming)
    nodes.check(packages, storage)
    epochs = Queue(actor_options={"num_cpus": 0})

    def work(config: Mapping[str, Any]) -> Any:
        nodes.agree(packages)  # Raised, unlike what all workers would find: the others must end too.
        try:
            return train(ray.get(config["task"]), RayWorker(epochs.put))
        except (TlrayError, ValueError, TypeError) as error:
            return error  # Raised, it would be tried again, and come again.
        except Exception as error:
            # From within a stream it comes as an error of TensorFlow. Several workers must end together.
            if "tlray.core.errors." in str(error) and most == 1:
                return JobError(session.reason(error))
            raise

    trainer = private.data_parallel_trainer()(
        work,
        train_loop_config={"task": ray.put(task)},
        backend_config=_TensorFlowConfig(),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
            use_gpu=gpus > 0,
            # On CPUs each takes all cores of its node.
            placement_strategy="PACK" if gpus else "SPREAD",
            # A streaming worker shares its GPU with the network that feeds it.
            resources_per_worker={"CPU": 1, **({"GPU": 0.5 if streaming else 1} if gpus else {})},
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_FAILURES if least == most else _LOSSES),
        ),
    )
    try:
        return _outcome(trainer, epochs, report)
    finally:
        epochs.shutdown(force=True)


def _outcome(trainer: Any, epochs: Queue, report: Report) -> Any:
    """Wait for the end, passing reports on; errors as in `run`."""
    found: list[Any] = []

    def fit() -> None:
        try:
            found.append(trainer.fit().return_value)
        except Exception as error:
            found.append(error)

    # In a thread of its own, or Ray Train would take over Ctrl-C.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not epochs.empty():
        try:
            report(epochs.get(timeout=0.2))
        except Empty:
            continue
    (outcome,) = found
    if isinstance(outcome, UserError):
        raise outcome
    if isinstance(outcome, Exception):
        failures = getattr(outcome, "worker_failures", None) or {0: outcome}
        first = next(iter(failures.values()))
        raise JobError(f"training failed: {session.reason(first)}") from outcome
    return outcome
