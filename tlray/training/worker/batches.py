"""The rows that each training worker takes at each step, so that N workers train as one would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class GlobalBatches:
    """One worker's share of every global batch of an epoch.

    The rows of an epoch are a permutation drawn from (seed, epoch) and cut into global batches. Each worker
    takes its slice of each global batch. The slices of several workers are padded to one length with rows of
    weight 0, because collective operations need the same number of steps, of the same shape, from all.
    """

    rows: int
    """The number of training rows."""
    batch_size: int
    """The rows of a global batch."""
    workers: int
    rank: int
    """The number of this worker, from 0."""
    seed: int | None
    """The seed of the order of the rows; None keeps the order they have."""

    @property
    def steps(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def slots(self) -> int:
        """The rows of this worker in one step, padding included."""
        return -(-self.batch_size // self.workers)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return all rows in the order of an epoch, (rows,), which is the same on every worker."""
        if self.seed is None:
            return np.arange(self.rows)
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)

    def slice(
        self, order: npt.NDArray[np.int64], step: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return this worker's rows of one step and their weights in the loss, each (slots,).

        Keras divides the loss of a step by its rows, padding included, and the workers average
        their gradients. The weights undo both, so that each real row counts 1 / (real rows of the
        global batch). A single worker needs no padding: its last batch is short, as in plain Keras.
        """
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        if self.workers == 1:
            return batch, np.ones(len(batch), np.float32)
        real = batch[self.rank * self.slots : (self.rank + 1) * self.slots]
        rows = np.zeros(self.slots, np.int64)
        weights = np.zeros(self.slots, np.float32)
        rows[: len(real)] = real
        weights[: len(real)] = self.slots * self.workers / len(batch)
        return rows, weights
