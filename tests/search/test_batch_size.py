"""The choice of the batch size."""

from __future__ import annotations

import pytest

from milpverify.search.batch_size import BatchSize


def test_a_batch_that_takes_long_is_halved_and_stays_so() -> None:
    batch = BatchSize(size=256, smallest=16)
    for _ in range(20):
        batch.took(batch.size, 0.05 * batch.size)
    assert 16 <= batch.size <= 2.0 / 0.05
    fixed = BatchSize(size=256, fixed=256)
    fixed.took(256, 100.0)
    assert fixed.size == 256


@pytest.mark.parametrize("best", [16, 64, 512, 4096])
def test_the_batch_settles_where_the_rate_is_best(best: int) -> None:
    def seconds(size: int) -> float:  # up to the best size a batch costs the same however many are in it
        return max(size, best) / 10000 * (1.2 if size > best else 1.0)

    batch = BatchSize(largest=4096)
    for k in range(400):
        batch.took(batch.size, seconds(batch.size) * (1.0 if k % 3 else 3.0))
    assert batch.settled or batch.size in (best // 2, best, 2 * best)
    while not batch.settled:
        batch.took(batch.size, seconds(batch.size))
    assert batch.size == best


def test_batches_that_are_not_full_say_nothing() -> None:
    batch = BatchSize()
    for _ in range(50):
        batch.took(5, 1.0)
    assert batch.size == 32 and not batch.rates


def test_a_fixed_schedule_heeds_counts_alone() -> None:
    sizes = []
    for pace in (1e-6, 10.0):
        batch = BatchSize(fixed=256)
        seen = []
        for k in range(8):
            seen.append(batch.size)
            batch.took(batch.size, pace * (k + 1) ** 3)
        sizes.append(seen)
    assert sizes[0] == sizes[1] == [32, 64, 128, 256, 256, 256, 256, 256]


def test_short_memory_caps_the_batch() -> None:
    batch = BatchSize()
    batch.at_most(8)
    for _ in range(100):
        batch.took(batch.size, 1.0)
        assert batch.size <= 8
