"""Runs that are killed, interrupted, or out of room: the source and the old result are whole."""
# ruff: noqa: PTH208, BLE001

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from migration.states import SHM
from paths import ROOT

from ckptool import api
from ckptool.errors import CkptoolError
from ckptool.migration.write import file

pytestmark = pytest.mark.process


CALLS = (
    "pwrite",
    "copy_file_range",
    "preadv",
    "fsync",
    "link",
    "unlink",
    "replace",
    "open",
    "mkdir",
    "write",
    "fdatasync",
)
OLD = b"an older result"


@pytest.fixture
def place():
    torch.manual_seed(0)
    # Small tensors are read and written together, larger ones one by one.
    state = {f"layer.{n}": torch.randn(40 if n % 2 else 80, 60) for n in range(6)}
    with TemporaryDirectory(dir=SHM) as name:
        torch.save(state, Path(name) / "a.pth")
        yield Path(name)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its exit code, 2 for one of our errors."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
        os._exit(0)
    except CkptoolError:
        os._exit(2)
    except BaseException:
        os._exit(70)


def migrate(place: Path, suffix: str, **options) -> None:
    api.migrate(place / "a.pth", place / f"new{suffix}", force=True, **options)


def killed_at(place: Path, suffix: str, point: int) -> int:
    """Migrate in a process that kills itself before its call number `point` to the system."""
    count = 0

    def counting(call):
        def counted(*args, **named):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return counted

    def work() -> None:
        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        migrate(place, suffix)

    return in_child(work)


@pytest.mark.parametrize(
    ("suffix", "before", "least"),
    [(".safetensors", None, 1 << 20), (".safetensors", OLD, 0), (".pth", OLD, 0)],
    ids=["after the plan", "before the plan", "pth"],
)
def test_kill_9_before_any_call(place, suffix, before, least, monkeypatch):
    """At 60 points and more; with `least` 0 the file is begun before the plan is known."""
    monkeypatch.setattr(file, "MIN_EARLY_COPY_NBYTES", least)
    source, target = (place / "a.pth").read_bytes(), place / f"new{suffix}"
    assert in_child(lambda: migrate(place, suffix)) == 0
    whole = target.read_bytes()
    seen = set()
    for point in range(1, 200):
        target.unlink(missing_ok=True) if before is None else target.write_bytes(before)
        code = killed_at(place, suffix, point)
        after = target.read_bytes() if target.exists() else None
        assert after in {before, whole}, point
        assert (place / "a.pth").read_bytes() == source
        seen.add(after)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if point % 4:
            continue
        assert in_child(lambda: migrate(place, suffix)) == 0
        names = {"a.pth", target.name} | (
            {f"{target.name}.ckptool.json"} - {"new.safetensors.ckptool.json"}
        )
        assert set(os.listdir(place)) == names, point
        assert target.read_bytes() == whole
    assert point > 20
    assert seen == {before, whole}


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("room", [0, 100, 5000, 40_000])
def test_no_room(place, before, room):
    target = place / "new.safetensors"
    if before is not None:
        target.write_bytes(before)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        migrate(place, ".safetensors")

    assert in_child(work) == 2
    assert (target.read_bytes() if target.exists() else None) == before
    assert set(os.listdir(place)) == {"a.pth"} | ({target.name} if before else set())


@pytest.mark.parametrize("name", ["pwrite", "preadv", "fsync", "link", "pread"])
def test_a_call_that_fails(place, name):
    def work() -> None:
        def fail(*_args, **_named):
            raise OSError(5, "Input/output error")

        setattr(os, name, fail)
        api.migrate(place / "a.pth", place / "new.pth")

    assert in_child(work) == 2
    assert os.listdir(place) == ["a.pth"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle(place, number):
    """The real command, stopped while it writes: one line, not 0, nothing left."""
    torch.save({f"layer.{n}": torch.randn(512, 512) for n in range(100)}, place / "a.pth")
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", "migrate", "a.pth", "-o", "new.safetensors"],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and len(os.listdir(place)) == 1:
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].startswith("ckptool: ")
    assert (out, "Traceback" in err) == ("", False)
    assert set(os.listdir(place)) <= {"a.pth", "new.safetensors"}


def test_a_source_that_changes_meanwhile_is_refused(place):
    def work() -> None:
        before = os.preadv

        def changing(*args, **named):
            with (place / "a.pth").open("r+b") as file:
                file.seek(2000)
                file.write(b"changed")
            return before(*args, **named)

        os.preadv = changing
        migrate(place, ".safetensors")

    (place / "new.safetensors").write_bytes(OLD)
    assert in_child(work) == 2
    assert (place / "new.safetensors").read_bytes() == OLD
    assert len(os.listdir(place)) == 2


def test_the_error_is_one_line_that_names_the_way_out(place, ckptool):
    (place / "new.pth").write_bytes(OLD)
    ran = ckptool("migrate", "a.pth", "-o", "new.pth", cwd=place)
    assert (ran.code, ran.out) == (2, "")
    message = "ckptool: new.pth: already exists: choose another name, or replace it with --force\n"
    assert ran.err == message
    ran = ckptool("migrate", "a.pth", "-o", "a.pth", "--force", cwd=place)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "-o a.pth: is an input of this command" in ran.err
