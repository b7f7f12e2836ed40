"""N workers see what one would see: every row once, with the same share in the loss."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlray.training.worker.batches import GlobalBatches

Step = tuple[np.ndarray, np.ndarray]


def ranks(rows: int, batch_size: int, workers: int, seed: int | None = 0) -> list[GlobalBatches]:
    return [
        GlobalBatches(rows=rows, batch_size=batch_size, workers=workers, rank=rank, seed=seed)
        for rank in range(workers)
    ]


def epoch(all_ranks: list[GlobalBatches], number: int = 0) -> list[list[Step]]:
    """What each worker takes at each step."""
    return [
        [rank.slice(rank.order(number), step) for rank in all_ranks] for step in range(all_ranks[0].steps)
    ]


def check(rows: int, batch_size: int, workers: int) -> None:
    all_ranks = ranks(rows, batch_size, workers)
    assert len({(rank.steps, rank.slots) for rank in all_ranks}) == 1
    counts: Counter[int] = Counter()
    alone = epoch(ranks(rows, batch_size, 1))
    for step, ((expected, expected_weights),) in zip(epoch(all_ranks), alone, strict=True):
        real = [int(row) for taken, weights in step for row in taken[weights > 0]]
        # The same rows in the same order as a single worker, and each counts the same.
        assert real == expected[expected_weights > 0].tolist()
        for taken, weights in step:
            slots = len(real) if workers == 1 else all_ranks[0].slots
            assert taken.shape == weights.shape == (slots,)
            assert set(weights[weights > 0]) <= {np.float32(slots * workers / len(real))}
            assert (weights >= 0).all()
            assert ((taken >= 0) & (taken < rows)).all()
        # Keras divides by the slots, the workers by their number.
        share = sum(float(weights.sum()) / len(weights) for _, weights in step) / workers
        assert share == pytest.approx(1, rel=1e-5)
        counts.update(real)
    assert counts == Counter(range(rows))


@settings(deadline=None)
@given(rows=st.integers(1, 400), batch_size=st.integers(1, 450), workers=st.integers(1, 9))
@example(rows=1, batch_size=1, workers=1)
@example(rows=1, batch_size=32, workers=5)
@example(rows=97, batch_size=4, workers=5)
@example(rows=101, batch_size=20, workers=3)
def test_every_row_once_with_an_equal_share(rows, batch_size, workers):
    check(rows, batch_size, workers)


def test_more_workers_than_rows():
    """In the last batch, and in every batch."""
    step = epoch(ranks(rows=9, batch_size=8, workers=4))[-1]
    assert [weights.tolist() for _, weights in step] == [[8, 0], [0, 0], [0, 0], [0, 0]]
    for step in epoch(ranks(rows=4, batch_size=2, workers=5)):
        assert [weights.tolist() for _, weights in step] == [[2.5], [2.5], [0], [0], [0]]


@pytest.mark.parametrize("seed", [0, 2**32, None])
def test_the_order_is_the_same_for_all_ranks_workers_and_batches(seed):
    for number in range(3):
        all_ranks = [*ranks(50, 8, 3, seed), *ranks(50, 7, 1, seed)]
        first, *others = [rank.order(number).tolist() for rank in all_ranks]
        assert others == [first] * 3
        assert sorted(first) == list(range(50))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, number: int) -> tuple[int, ...]:
        return tuple(ranks(50, 8, 1, seed)[0].order(number).tolist())

    orders = {(seed, number): order(seed, number) for seed in range(5) for number in range(5)}
    assert len(set(orders.values())) == 25
    assert all(order(*key) == rows for key, rows in orders.items())


def test_without_a_seed_rows_keep_their_order():
    (alone,) = ranks(10, 4, 1, None)
    assert alone.order(0).tolist() == alone.order(7).tolist() == list(range(10))
    batches = [taken[weights > 0].tolist() for ((taken, weights),) in epoch([alone])]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
