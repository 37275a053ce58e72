"""Where tasks run: small items in the thread that asks, large ones in others."""

import threading
from pathlib import Path

import pytest

from ckptool.values.batches.batch_runner import BatchRunner, is_threadable


def name_threads(folder: Path, items: list[int]) -> list[str]:
    return [threading.current_thread().name for _ in items]


@pytest.mark.parametrize(
    ("nbytes", "is_here"), [(16, True), (1 << 14, True), (1 << 16, False), (1 << 20, False)]
)
def test_small_items_are_worked_on_in_the_calling_thread(nbytes, is_here):
    batches = [(nbytes * 3, [3 * n, 3 * n + 1, 3 * n + 2]) for n in range(7)]
    results = list(BatchRunner(2).map_batches(name_threads, batches))
    assert [item for items, _ in results for item in items] == list(range(21))
    names = {name for _, thread_names in results for name in thread_names}
    assert (names == {threading.current_thread().name}) == is_here
    assert is_threadable(nbytes * 3, 3) != is_here


def test_batches_of_both_kinds_keep_their_order():
    batches = [(1 << 20 if n % 3 else 1, [n]) for n in range(30)]
    assert [items for items, _ in BatchRunner(2).map_batches(name_threads, batches)] == [
        [n] for n in range(30)
    ]


def fail_at_five(folder: Path, items: list[int]) -> int:
    if 5 in items:
        raise ValueError("five")
    return items[0]


@pytest.mark.parametrize("nbytes", [1, 1 << 20])
def test_an_error_of_a_task_ends_the_rest(nbytes):
    results = []
    with pytest.raises(ValueError, match="five"):
        results.extend(
            first
            for _, first in BatchRunner(2).map_batches(
                fail_at_five, [(nbytes, [n]) for n in range(9)]
            )
        )
    assert set(results) <= {0, 1, 2, 3, 4}
