"""N workers see what one would see: every row once, with the same share in the loss."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
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
    seen: Counter[int] = Counter()
    alone = epoch(ranks(rows, batch_size, 1))
    for step, one in zip(epoch(all_ranks), alone, strict=True):
        real = [int(row) for taken, weights in step for row in taken[weights > 0]]
        # The same rows in the same order as a single worker, and each counts the same.
        assert real == one[0][0][one[0][1] > 0].tolist()
        for taken, weights in step:
            slots = len(real) if workers == 1 else all_ranks[0].slots
            assert taken.shape == weights.shape == (slots,)
            assert set(weights[weights > 0]) <= {np.float32(slots * workers / len(real))}
            assert (weights >= 0).all()
            assert ((taken >= 0) & (taken < rows)).all()
        # Keras divides by the slots, the workers by their number.
        share = sum(float(weights.sum()) / len(weights) for _, weights in step) / workers
        assert share == pytest.approx(1, rel=1e-5)
        seen.update(real)
    assert seen == Counter(range(rows))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 20, 32])
@pytest.mark.parametrize("rows", [1, 2, 31, 97, 101])
def test_every_row_once_with_an_equal_share(rows, batch_size, workers):
    check(rows, batch_size, workers)


@settings(deadline=None)
@given(rows=st.integers(1, 400), batch_size=st.integers(1, 450), workers=st.integers(1, 9))
def test_any_numbers(rows, batch_size, workers):
    check(rows, batch_size, workers)


def test_more_workers_than_rows_in_the_last_batch():
    step = epoch(ranks(rows=9, batch_size=8, workers=4))[-1]
    assert [int((weights > 0).sum()) for _, weights in step] == [1, 0, 0, 0]
    assert step[0][1].tolist() == [8, 0]
    assert [len(taken) for taken, _ in step] == [2, 2, 2, 2]


def test_more_workers_than_the_batch_has_rows():
    for step in epoch(ranks(rows=4, batch_size=2, workers=5)):
        assert [len(taken) for taken, _ in step] == [1] * 5
        assert [weights.tolist() for _, weights in step] == [[2.5], [2.5], [0], [0], [0]]


def test_a_row_counts_as_with_one_worker():
    """The mean of a value over the workers' padded slices is its mean over the global batch."""
    values = np.random.default_rng(1).standard_normal(103)
    for workers in (2, 3, 5):
        all_ranks = ranks(103, 20, workers)
        order = all_ranks[0].order(0)
        for number, step in enumerate(epoch(all_ranks)):
            batch = order[number * 20 : (number + 1) * 20]
            means = [(values[taken] * weights).sum() / len(taken) for taken, weights in step]
            assert np.mean(means) == pytest.approx(values[batch].mean(), rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2**32, None])
def test_all_ranks_have_one_order(seed):
    for number in range(3):
        orders = [rank.order(number).tolist() for rank in ranks(50, 8, 3, seed)]
        assert orders[0] == orders[1] == orders[2]
        assert sorted(orders[0]) == list(range(50))


def test_the_order_does_not_depend_on_workers_or_batch():
    expected = ranks(50, 8, 1)[0].order(2).tolist()
    assert ranks(50, 7, 4)[3].order(2).tolist() == expected


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, number: int) -> tuple[int, ...]:
        return tuple(ranks(50, 8, 1, seed)[0].order(number).tolist())

    orders = {(seed, number): order(seed, number) for seed in range(5) for number in range(5)}
    assert len(set(orders.values())) == 25
    assert all(order(*key) == found for key, found in orders.items())


def test_without_a_seed_rows_keep_their_order():
    (alone,) = ranks(10, 4, 1, None)
    assert alone.order(0).tolist() == alone.order(7).tolist() == list(range(10))
    assert [taken[weights > 0].tolist() for ((taken, weights),) in epoch([alone])] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
