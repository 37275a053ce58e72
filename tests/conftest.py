"""Fixtures shared by all tests: real files, and the command as a real process."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_runs import Ran, run_in_process, run_process
from hypothesis import settings
from paths import IS_CI, ROOT, SAMPLES

# The machine that runs CI is slow and shared: how long an example takes says nothing there. Its
# examples are the same every time, so that it fails by what changed; elsewhere they are fewer, and
# new ones each time.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("inner loop", deadline=None, max_examples=25)
settings.load_profile("ci" if IS_CI else "inner loop")


# MKL, which reads it at its first call, rounds alike on every processor: tests compare outputs.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


PROCESSES = {"ckptool", "project", "tool"}
"""Fixtures that start processes."""


BROWSER = str(ROOT / "tests" / "browser") + os.sep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if PROCESSES & {*getattr(item, "fixturenames", ())}:
            item.add_marker("process")
        if str(item.path).startswith(BROWSER):
            item.add_marker("browser")


def pytest_collection_finish() -> None:
    """Leave a million objects of libraries and tests out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _forget_own_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget the modules that a test wrote and imported: another test has others of their names."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("tmp_path")
    names_before = {*sys.modules}
    yield
    for name in sys.modules.keys() - names_before:
        file = getattr(sys.modules[name], "__file__", None)
        if isinstance(file, str) and Path(file).is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture
def ckptool() -> Callable[..., Ran]:
    """Run the command in a process of its own, from the repository's root unless told otherwise."""
    return run_process


@pytest.fixture
def run_command() -> Callable[..., Ran]:
    """Run the command within this process: where a process of its own is not what is tested."""
    return run_in_process


@pytest.fixture
def samples() -> Path:
    return SAMPLES


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """linear.pth: the state_dict of one Linear(2, 3)."""
    from files import save
    from torch import nn

    return save(tmp_path / "linear.pth", nn.Linear(2, 3).state_dict())
