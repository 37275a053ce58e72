"""Values compared by the workers of a real Dask cluster: processes, of which one dies."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster

from ckptool import api
from ckptool.errors import ReadError, UsageError
from ckptool.values import equality
from ckptool.values.batches import work_batches

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cluster")
    torch.manual_seed(0)
    state = {f"layers.{n}.weight": torch.randn(64, 64) for n in range(40)}
    torch.save(state, folder / "old.pth")
    state["layers.7.weight"] = state["layers.7.weight"] + 1e-3
    state["layers.9.weight"] = state["layers.9.weight"].bfloat16()
    state["moved"] = state.pop("layers.11.weight")
    torch.save(state, folder / "new.pth")
    return folder / "old.pth", folder / "new.pth"


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as running:
        yield running


@pytest.fixture
def _small_batches(monkeypatch):
    monkeypatch.setattr(equality, "TASK_NBYTES", 4096)
    monkeypatch.setattr(work_batches, "TASK_NBYTES", 4096)
    monkeypatch.setattr(work_batches, "_TASK_ITEMS", 1)


@pytest.mark.usefixtures("_small_batches")
def test_a_cluster_says_what_threads_say(cluster, files):
    here = api.diff(*files)
    assert api.diff(*files, dask=cluster.scheduler_address) == here
    assert here.renamed_keys == {"layers.11.weight": "moved"}
    assert [change.key for change in here.changes] == ["layers.9.weight", "layers.7.weight"]


@pytest.mark.usefixtures("_small_batches")
def test_a_worker_that_is_killed_changes_nothing(cluster, files):
    here = api.diff(*files)
    killed: list[int] = []

    def kill(_: int) -> None:
        if not killed:
            with Client(cluster, set_as_default=False) as client:
                pid = next(iter(client.run(os.getpid).values()))
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    assert api.diff(*files, dask=cluster.scheduler_address, progress=kill) == here
    assert len(killed) == 1


def test_an_error_of_a_worker_arrives_as_it_is(cluster, files, tmp_path):
    copies = [tmp_path / path.name for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())

    def lose(_: int) -> None:
        copies[1].unlink(missing_ok=True)

    with pytest.raises(ReadError, match=r"new\.pth: no such file"):
        api.diff(*copies, dask=cluster.scheduler_address, progress=lose)


def test_paths_are_those_of_the_one_who_asks(cluster, files, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    here = api.diff("old.pth", "new.pth")
    assert api.diff("old.pth", "new.pth", dask=cluster.scheduler_address) == here


def test_any_executor_will_do(files):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        assert api.diff(*files, executor=executor) == api.diff(*files)


@pytest.mark.parametrize("address", ["nonsense://x", "not an address"])
def test_an_address_where_nobody_answers(files, address):
    with pytest.raises(UsageError, match=f"--dask {address}: no Dask scheduler responds"):
        api.diff(*files, dask=address)


def test_without_dask_there_is_a_way_out(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'ckptool\[cluster\]'"):
        api.diff(*files, dask="tcp://127.0.0.1:1")


def test_no_thread_is_left_behind(files):
    api.diff(*files, jobs=3)
    ends = time.monotonic() + 10
    while any(t.name.startswith("ThreadPoolExecutor") for t in threading.enumerate()):
        assert time.monotonic() < ends
        time.sleep(0.01)
