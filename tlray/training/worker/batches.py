"""Which rows each training worker takes at each step, so that N workers see what one would see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class GlobalBatches:
    """One worker's share of every global batch of an epoch.

    The rows of an epoch are a permutation drawn from (seed, epoch), cut into global batches; each
    worker takes its slice of every one. The slices of several workers are padded to one length
    with rows of weight 0: collectives need the same number of steps, of the same shape, from all.
    """

    rows: int
    batch_size: int
    """Rows of a global batch."""
    workers: int
    rank: int
    """Of this worker, from 0."""
    seed: int | None
    """None: the rows in their own order."""

    @property
    def steps(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def slots(self) -> int:
        """Rows of this worker in one step, padding included."""
        return -(-self.batch_size // self.workers)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All rows in the order of that epoch; the same on every worker."""
        if self.seed is None:
            return np.arange(self.rows)
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)

    def slice(
        self, order: npt.NDArray[np.int64], step: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """This worker's rows of one step and their weights in the loss, each (slots,).

        Keras divides the loss of a step by its rows, padding included, and the workers average
        their gradients. The weights undo both, so that each real row counts 1 / (real rows of the
        global batch).
        """
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        if self.workers == 1:  # Nobody to keep step with: the last batch is short, as in plain Keras.
            return batch, np.ones(len(batch), np.float32)
        mine = batch[self.rank * self.slots : (self.rank + 1) * self.slots]
        rows = np.zeros(self.slots, np.int64)
        weights = np.zeros(self.slots, np.float32)
        rows[: len(mine)] = mine
        weights[: len(mine)] = self.slots * self.workers / len(batch)
        return rows, weights
