"""Work of a call, counted: function calls and bytes, which are the same on every machine."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What a call took."""

    calls: int
    """Calls of functions, Python's and C's, and resumed generators."""
    nbytes: int
    """Bytes of memory at its peak."""


def count_work(function: Callable[[], Any]) -> Work:
    """Return the calls and the peak memory of `function`, which is run three times."""
    function()  # imports and caches are no part of the work
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(previous)
    tracemalloc.start()
    try:
        function()
        nbytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Work(calls, nbytes)


def assert_in_proportion(run: Callable[[int], Any], size: int, *, factor: float = 2.5) -> None:
    """Assert that twice the size takes at most `factor` times the work: squared work takes 4."""
    small, large = count_work(lambda: run(size)), count_work(lambda: run(2 * size))
    assert large.calls <= factor * small.calls, (small, large)
    assert large.nbytes <= factor * small.nbytes + 200_000, (small, large)
