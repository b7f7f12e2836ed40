"""Runs the training loop on N Ray Train workers, and passes on what they report and return."""

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
from tlray.core.errors import DivergenceError, JobError, TlrayError, UserError
from tlray.core.storage import Folder
from tlray.training.view_stream import STREAM_CPUS
from tlray.training.worker.task import Report, Worker

_FAILURES, _ELASTIC_FAILURES = 3, 30
"""How often a training may fail; with a range of workers more often, because nodes are expected to leave."""
_RESIZE_SECONDS = 60
"""Seconds between two checks for room for more workers. Taking them in costs the current epoch."""


class RayWorker:
    """The `Worker` of a training on Ray; its checkpoints are in the storage of the run."""

    def __init__(self, report: Report) -> None:
        """Take rank and count from Ray Train; only the first worker calls `report`."""
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.count: int = context.get_world_size()
        self.report: Report = report if self.rank == 0 else lambda metrics: None
        # Ray gives each worker a current folder, and removes it if the worker is killed.
        self.scratch: str | None = "."

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        checkpoint = ray.train.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            yield folder

    def save(self, folder: str | None) -> None:
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if folder else None)


class _TensorFlowBackend(Backend):
    """Tells TensorFlow the addresses of all workers."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        private.exchange(worker_group, _free_address, _set_tf_config)


class _TensorFlowConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


def _free_address() -> str:
    """Return an address of this node with a port that is free now."""
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(task)


def check_resources(workers: int, streaming: bool) -> int:
    """Raise UserError if this Ray lacks CPUs or GPUs for this many workers; return its number of GPUs."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    available = min(gpus or workers, int(cpus / (1 + STREAM_CPUS if streaming else 1)))
    if workers > available:
        raise UserError(
            f"--workers or --min-workers {workers}: this Ray has {cpus:g} CPUs and {gpus} GPUs, enough for "
            f"{available} workers: give fewer, or let the training begin with fewer by --min-workers"
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
    """Train on every worker, from the last checkpoint if there is one; return the first worker's result.

    Ray's object store holds `task` once for each node, and workers read its arrays there without a copy.
    `workers` are the least and the most. With room for fewer than the most, the training uses as many as
    there is room for; when that changes, it continues from the last checkpoint. All nodes must see `storage`,
    which also holds Ray Train's own state.
    """
    least, most = workers
    gpus = check_resources(least, streaming)
    nodes.check(packages, storage)
    epochs = Queue(actor_options={"num_cpus": 0})

    def work(config: Mapping[str, Any]) -> Any:
        # Raise this error instead of returning it: only some workers may find it, and all must end.
        nodes.agree(packages)
        try:
            return train(ray.get(config["task"]), RayWorker(epochs.put))
        except (TlrayError, ValueError, TypeError) as error:
            return error  # If it were raised, Ray Train would try again and fail again.
        except Exception as error:
            # TensorFlow wraps errors of a stream. Several workers must end together, so they raise it again.
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
            # On CPUs each worker uses all cores of its node.
            placement_strategy="PACK" if gpus else "SPREAD",
            # A streaming worker shares its GPU with the network that feeds it.
            resources_per_worker={"CPU": 1, **({"GPU": 0.5 if streaming else 1} if gpus else {})},
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_FAILURES if least == most else _ELASTIC_FAILURES),
        ),
    )
    try:
        return _outcome(trainer, epochs, report)
    finally:
        epochs.shutdown(force=True)


def _outcome(trainer: Any, epochs: Queue, report: Report) -> Any:
    """Run the training and pass on its reports; return and raise what `run` does."""
    outcomes: list[Any] = []

    def fit() -> None:
        try:
            outcomes.append(trainer.fit().return_value)
        except Exception as error:
            outcomes.append(error)

    # Ray Train would handle Ctrl-C itself if it ran in the main thread.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not epochs.empty():
        try:
            report(epochs.get(timeout=0.2))
        except Empty:
            continue
    (outcome,) = outcomes
    if isinstance(outcome, UserError | DivergenceError):
        raise outcome
    if isinstance(outcome, Exception):
        failures = getattr(outcome, "worker_failures", None) or {0: outcome}
        first = next(iter(failures.values()))
        raise JobError(f"training failed: {session.reason(first)}") from outcome
    return outcome
