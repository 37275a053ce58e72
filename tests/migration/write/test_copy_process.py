"""A large file is copied by a process of its own while torch is imported: real ones, and faults."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from migration.states import SHM
from paths import ROOT

import ckptool
from ckptool.errors import CorruptCheckpointError, ReadError, WriteError
from ckptool.migration.write import copy_process

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not Path(f"/proc/self/task/{os.getpid()}/children").exists(),
        reason="the system does not tell the children of a process",
    ),
]
LAYERS, SIDE = 20, 1024
MODEL = f"""
import os, time
from pathlib import Path
import torch
from torch import nn

children = Path("/proc/self/task", str(os.getpid()), "children").read_text()
Path("seen").write_text(children)
while Path("wait").exists():
    time.sleep(0.005)

class Model(nn.Module):
    def __init__(self, first=0, last={LAYERS}, counter=False):
        super().__init__()
        self.layers = nn.ModuleDict(
            {{f"n{{n:02}}": nn.Linear({SIDE}, {SIDE} + n, bias=False) for n in range(first, last)}}
        )
        self.register_buffer("mask", torch.arange(4.0))
        if counter:
            self.register_buffer("counter", torch.tensor(7))

class Broken(nn.Module):
    def __init__(self):
        raise ValueError("no such model")
"""


@pytest.fixture
def place():
    torch.manual_seed(0)
    state = {f"layers.n{n:02}.weight": torch.randn(SIDE + n, SIDE) for n in range(LAYERS)}
    with TemporaryDirectory(dir=SHM) as name:
        torch.save(state, Path(name) / "a.pth")
        (Path(name) / "apart_model.py").write_text(MODEL)
        yield Path(name)


class Run:
    """The command with a module, as the leader of a group of processes."""

    def __init__(self, place, *words, start=("-m", "ckptool"), limit=None):
        command = [
            *(sys.executable, *start, "migrate", "a.pth", "-o", "new.safetensors"),
            *(("-m", "apart_model:Model") if "-m" not in words else ()), *words,
        ]  # fmt: skip
        self.place = place
        self.start = lambda: subprocess.Popen(
            command, cwd=place, env={**os.environ, "PYTHONPATH": f"{ROOT}:{place}"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.process = self.start()
        if limit is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, limit))

    def copier(self) -> int:
        """Return the other process, stopped before it has finished; try again where it was fast."""
        for _ in range(20):
            while self.process.poll() is None:
                if found := self._found():
                    os.kill(found, signal.SIGSTOP)
                    return found
            assert self.end() == (0, "")
            (self.place / "new.safetensors").unlink()
            (self.place / "seen").unlink()
            self.process = self.start()
        raise AssertionError("it was never seen")

    def _found(self) -> int | None:
        pid = self.process.pid
        with suppress(OSError):
            for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                # Before that it is still the parent, which would wait for it.
                if b"copy_process import main" in Path(f"/proc/{found}/cmdline").read_bytes():
                    return int(found)
        return None

    def until_it_builds(self) -> None:
        until(lambda: (self.place / "seen").exists() or self.process.poll() is not None)

    def end(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=120)
        assert "Traceback" not in out + err
        return self.process.returncode, err


def until(true) -> None:
    """Wait for what comes at once, and fail where it does not come."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def names(place) -> set[str]:
    """Return what is there besides what was put there for the run."""
    ours = {"a.pth", "apart_model.py", "seen", "wait", "__pycache__"}
    return {path.name for path in place.iterdir()} - ours


def expected(place, monkeypatch, **options) -> bytes:
    """Return what threads write: in this process torch is there already."""
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    wait = place / "wait"
    wait.unlink(missing_ok=True)
    options = {"module": "apart_model:Model", **options}
    ckptool.migrate("a.pth", "threads.safetensors", **options)
    sys.modules.pop("apart_model", None)
    (place / "seen").unlink()
    data = (place / "threads.safetensors").read_bytes()
    (place / "threads.safetensors").unlink()
    return data


WISHES = {
    "all is kept": ((), {}),
    "the first is dropped": (
        ("--drop", "layers.n00.weight", "-k", "first=1"),
        {"drop": ["layers.n00.weight"], "kwargs": {"first": 1}},
    ),
    "the last is dropped": (
        ("--drop", "layers.n19.weight", "-k", "last=19"),
        {"drop": ["layers.n19.weight"], "kwargs": {"last": 19}},
    ),
    "one comes before": (("-k", "counter=True"), {"kwargs": {"counter": True}}),
    "without digests": (("--no-provenance",), {"provenance": False}),
}


@pytest.mark.parametrize("name", WISHES)
def test_it_writes_what_threads_write(place, monkeypatch, name):
    words, options = WISHES[name]
    data = expected(place, monkeypatch, **options)
    assert Run(place, *words).end() == (0, "")
    assert (place / "seen").read_text().split(), "no process was started"
    assert (place / "new.safetensors").read_bytes() == data
    assert names(place) == {"new.safetensors"}


def test_kill_9_of_the_parent(place):
    """The other process holds no lock: the next run cleans up even while it is still there."""
    run = Run(place)
    copier = run.copier()
    run.process.kill()
    run.end()
    assert any(name.startswith(".ckptool-") for name in names(place))
    assert not gone(copier)
    try:
        assert Run(place).end() == (0, "")
        assert names(place) == {"new.safetensors"}
        assert not gone(copier)
    finally:
        os.kill(copier, signal.SIGCONT)
    until(lambda: gone(copier))
    assert names(place) == {"new.safetensors"}


@pytest.mark.parametrize("moment", ["at once", "in the middle", "at the end"])
def test_kill_9_of_the_other(place, monkeypatch, moment):
    """What it had not done is done by who started it."""
    data = expected(place, monkeypatch)
    (place / "wait").touch()
    run = Run(place)
    copier = run.copier()
    if moment != "at once":
        os.kill(copier, signal.SIGCONT)
        least = 0 if moment == "in the middle" else LAYERS * SIDE * SIDE * 4
        until(lambda: gone(copier) or any(
            path.stat().st_size > least for path in place.glob(".ckptool-*")
        ))  # fmt: skip
    os.kill(copier, signal.SIGKILL)
    (place / "wait").unlink()
    assert run.end() == (0, "")
    assert (place / "new.safetensors").read_bytes() == data
    assert names(place) == {"new.safetensors"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["the group", "the parent"])
@pytest.mark.parametrize("moment", ["it copies", "the module is built"])
def test_a_signal_while(place, moment, number, to):
    (place / "wait").touch()
    run = Run(place)
    copier = run.copier()
    if moment == "the module is built":
        os.kill(copier, signal.SIGCONT)
        run.until_it_builds()
    (os.killpg if to == "the group" else os.kill)(run.process.pid, number)
    code, err = run.end()
    assert code == 128 + number
    assert err.startswith(f"ckptool: ended by {signal.Signals(number).name}: ")
    assert err.count("\n") == 1
    assert gone(copier)
    assert names(place) == set()


def test_a_signal_to_the_other_alone_is_not_for_it(place):
    run = Run(place)
    copier = run.copier()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(copier, number)
    os.kill(copier, signal.SIGCONT)
    assert run.end() == (0, "")
    assert names(place) == {"new.safetensors"}


def test_a_source_that_is_cut_short(place):
    run = Run(place)
    copier = run.copier()
    os.truncate(place / "a.pth", 40 << 20)
    os.kill(copier, signal.SIGCONT)
    code, err = run.end()
    assert code == 2
    message = f"ckptool: a.pth: the file ended at byte {40 << 20} while it was read\n"
    assert err == message
    assert gone(copier)
    assert names(place) == set()


@pytest.mark.parametrize("room", [100, 100_000, 50 << 20])
def test_no_room(place, room):
    """The other process meets the limit first; its error comes back as one line."""
    code, err = Run(place, limit=room).end()
    assert (code, err) == (2, "ckptool: new.safetensors: not written: File too large\n")
    assert names(place) == set()


def test_an_older_result_stays_where_there_is_no_room(place):
    (place / "new.safetensors").write_bytes(b"an older result")
    assert Run(place, "--force", limit=50 << 20).end()[0] == 2
    assert (place / "new.safetensors").read_bytes() == b"an older result"
    assert names(place) == {"new.safetensors"}


def test_a_module_that_cannot_be_built(place):
    code, err = Run(place, "-m", "apart_model:Broken").end()
    assert (code, err.count("\n")) == (2, 1)
    assert "no such model" in err
    assert all(map(gone, map(int, (place / "seen").read_text().split())))
    assert names(place) == set()


@pytest.mark.parametrize("executable", ["", "/none/python", "app"])
def test_where_no_process_can_be_started(place, monkeypatch, executable):
    """A frozen program, an interpreter that is not there: threads do it."""
    data = expected(place, monkeypatch)
    code = f"import sys; sys.executable = {executable!r}; from ckptool.cli import run; run()"
    assert Run(place, start=("-c", code)).end() == (0, "")
    assert (place / "seen").read_text().split() == []
    assert (place / "new.safetensors").read_bytes() == data


def test_a_process_that_is_no_python(place, monkeypatch):
    """It ends without a word: what it had not done is done by who started it."""
    data = expected(place, monkeypatch)
    (place / "python").symlink_to("/bin/false")
    code = "import sys; sys.executable = 'python'; from ckptool.cli import run; run()"
    assert Run(place, start=("-c", code)).end() == (0, "")
    assert (place / "new.safetensors").read_bytes() == data
    assert names(place) == {"new.safetensors", "python"}


@pytest.mark.parametrize(
    "error",
    [
        ReadError(Path("a\udcff.pth"), "Input/output error"),
        CorruptCheckpointError(Path("b.pth"), "the file ended at byte 7 while it was read"),
        WriteError("c\udcfe.safetensors: not written: No space left on device"),
    ],
)
def test_an_error_comes_back_as_it_was(error):
    again = copy_process._restore_error(copy_process._encode_error(error))
    assert (type(again), str(again)) == (type(error), str(error))
