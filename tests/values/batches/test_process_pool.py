"""Tasks in interpreters of their own: results, errors, and what ends one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckptool import api
from ckptool.errors import CorruptCheckpointError
from ckptool.values import difference
from ckptool.values.batches.process_pool import ProcessPool

pytestmark = pytest.mark.process


def raise_error(path: Path) -> None:
    raise CorruptCheckpointError(path, "is cut")


def end_unless_in(process_id: int) -> int:
    """End the process it runs in, unless that is `process_id`; return its number."""
    if os.getpid() != process_id:
        os.kill(os.getpid(), signal.SIGTERM)
    return os.getpid()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in whose values every element differs from those of `new.pth` next to it."""
    torch.manual_seed(0)
    state = {f"layers.{n}.weight": torch.randn(300, 300) for n in range(9)}
    state["bias"] = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    torch.save(state, tmp_path / "old.pth")
    torch.save({key: value + 1e-3 for key, value in state.items()}, tmp_path / "new.pth")
    return tmp_path / "old.pth"


def test_tasks_run_in_other_processes_at_once():
    with ProcessPool(2) as pool:
        futures = [pool.submit(os.getpid) for _ in range(20)]
        process_ids = {future.result() for future in futures}
    assert 1 <= len(process_ids) <= 2
    assert os.getpid() not in process_ids
    for process_id in process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def test_an_error_of_a_task_is_that_error(tmp_path):
    with ProcessPool(1) as pool:
        with pytest.raises(CorruptCheckpointError, match="is cut"):
            pool.submit(raise_error, tmp_path / "model.pth").result()
        assert pool.submit(abs, -1).result() == 1


def test_a_task_whose_process_ends_runs_here():
    with ProcessPool(1) as pool:
        assert [pool.submit(end_unless_in, os.getpid()).result() for _ in range(3)] == [
            os.getpid()
        ] * 3


def test_without_an_interpreter_tasks_run_here(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with ProcessPool(2) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()


def test_processes_say_what_threads_say(path, monkeypatch):
    in_threads = api.diff(path, path.with_name("new.pth"))
    monkeypatch.setattr(difference, "_MIN_PROCESS_ELEMENTS", 1)
    started: list[ProcessPool] = []
    monkeypatch.setattr(
        ProcessPool, "__enter__", lambda pool: started.append(pool) or pool, raising=False
    )
    assert api.diff(path, path.with_name("new.pth")) == in_threads
    assert len(started) == (1 if (os.cpu_count() or 1) > 1 else 0)
    assert api.diff(path, path.with_name("new.pth"), jobs=1) == in_threads
    assert len(started) <= 1


def test_values_in_memory_are_not_looked_for_by_other_processes(path, monkeypatch):
    monkeypatch.setattr(difference, "_MIN_PROCESS_ELEMENTS", 1)
    states = [torch.load(p) for p in (path, path.with_name("new.pth"))]
    report = api.diff(*states)
    assert {change.key for change in report.changes} == set(states[0])


def test_a_script_without_a_main_guard_runs_once(path):
    script = path.with_name("script.py")
    script.write_text(
        "import ckptool\n"
        "from ckptool.values import difference\n"
        "difference._MIN_PROCESS_ELEMENTS = 1\n"
        "print(len(ckptool.diff('old.pth', 'new.pth').changes))\n"
    )
    result = subprocess.run(
        [sys.executable, script], cwd=path.parent, capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("10\n", "")
