"""Runs the training loop on N Ray Train workers and brings back what they report."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Empty, Queue

from tlray.errors import JobError, UserError
from tlray.storage import Folder

Loop = Callable[[Mapping[str, Any], int, int, Callable[[dict[str, float]], None]], Any]
"""Called in each worker with the settings, its rank, the number of workers, and where to report an epoch."""


class _TensorFlowBackend(Backend):
    """Tells TensorFlow where the other workers are.

    Ray's own TensorFlow backend also sets TF_USE_LEGACY_KERAS, which is not for Keras 3 (ray#64276).
    """

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_free_address)
        for rank in range(len(addresses)):
            worker_group.execute_single(rank, _set_tf_config, addresses, rank)


class _TensorFlowConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _TensorFlowBackend


def _free_address() -> str:
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(task)


def run(
    loop: Loop,
    settings: Mapping[str, Any],
    *,
    workers: int,
    storage: Folder,
    report: Callable[[dict[str, float]], None],
) -> Any:
    """Run `loop` on every worker.

    Args:
        loop: the training loop.
        settings: given to it; values may be references to objects in Ray's store.
        workers: how many.
        storage: a folder that all nodes see, for Ray Train's own state.
        report: called here with what the first worker reports of each epoch.

    Returns:
        What the loop returned on the first worker.

    Raises:
        UserError: raised by the loop.
        JobError: there are not enough CPUs or GPUs, or training failed.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    available = gpus or int(ray.cluster_resources().get("CPU", 0))
    if workers > available:
        raise UserError(
            f"--workers {workers}: expected at most {available}, the {'GPUs' if gpus else 'CPUs'} of this Ray"
        )
    epochs = Queue(actor_options={"num_cpus": 0})

    def work(config: Mapping[str, Any]) -> Any:
        context = ray.train.get_context()
        rank = context.get_world_rank()
        try:
            return loop(
                config, rank, context.get_world_size(), epochs.put if rank == 0 else lambda metrics: None
            )
        except UserError as error:  # Raised, it would be tried again.
            return error

    trainer = DataParallelTrainer(
        work,
        train_loop_config=dict(settings),
        backend_config=_TensorFlowConfig(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
        run_config=RunConfig(
            name="training",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    try:
        return _outcome(trainer, epochs, report)
    finally:
        epochs.shutdown(force=True)


def _outcome(trainer: DataParallelTrainer, epochs: Queue, report: Callable[[dict[str, float]], None]) -> Any:
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
        raise JobError(f"training failed: {str(first).strip().splitlines()[-1]}") from outcome
    return outcome
