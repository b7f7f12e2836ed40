"""The state of a training, which a checkpoint holds and a training that is continued restores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tlray.core import private
from tlray.core.config import TrainConfig
from tlray.core.errors import DivergenceError
from tlray.training.worker import best_epoch

_STATE, _HISTORY, _BEST = "state.npz", "history.json", "best.npz"
"""The files of a checkpoint; it has the last only if the job keeps the best weights."""


class State:
    """Weights, state of dropout and optimizer, history, and the best weights so far, in a local folder."""

    def __init__(self, model: keras.Model, config: TrainConfig, folder: Path) -> None:
        self.model, self.config, self.folder = model, config, folder
        self.history: list[dict[str, float]] = []

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.weights, *private.seed_states(self.model), *self.model.optimizer.variables]

    def restore(self, checkpoint: str) -> None:
        """Continue from a checkpoint, and copy its files into the folder."""
        shutil.copytree(checkpoint, self.folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        self.history = json.loads((self.folder / _HISTORY).read_text())
        for variable, value in zip(self._variables, _read(self.folder / _STATE), strict=True):
            variable.assign(value)
        self.check()

    def add(self, metrics: dict[str, float]) -> None:
        """Record the metrics of an epoch, and its weights if it is the best so far."""
        self.history.append(metrics)
        if self.config.keeps_best and best_epoch.kept(self.history, self.config) == len(self.history) - 1:
            _write(self.folder / _BEST, self.model.get_weights())

    def check(self) -> None:
        """Raise DivergenceError unless the losses of the last epoch, and the weights after it, are finite."""
        epoch = self.history[-1]
        bad = [f"the {name}" for name in ("loss", "val_loss") if not np.isfinite(epoch.get(name, 0))]
        if not all(np.isfinite(array).all() for array in self.model.get_weights()):
            bad.append("a weight")
        if bad:
            raise DivergenceError(
                f"the training has diverged: {bad[0]} is not finite after epoch {epoch['epoch']}, so no "
                "model is kept; try a smaller --learning-rate or another --optimizer"
            )

    def write(self) -> None:
        """Bring the files in the folder up to date."""
        (self.folder / _HISTORY).write_text(json.dumps(self.history))
        _write(self.folder / _STATE, [variable.numpy() for variable in self._variables])

    def kept_weights(self) -> list[npt.NDArray[Any]]:
        return _read(self.folder / _BEST) if self.config.keeps_best else self.model.get_weights()


def _write(path: Path, arrays: Sequence[npt.NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez(file, *arrays)


def _read(path: Path) -> list[npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return [file[name] for name in file.files]
