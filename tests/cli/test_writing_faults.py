"""Commands that write several files, with failing calls, signals and full disks: all, or none."""

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from command_runs import run_in_process
from migration.states import SHM
from writing_folder import MODULE, read_all, write_project

from ckptool.formats.files import atomic

pytestmark = pytest.mark.process

REPORTS = ("--format", "json", "-o", "r.json", "--format", "markdown", "-o", "r.md")
OLD = b"previous content"
MESSAGE_NBYTES = 300
"""Room for an error message, which a test writes to a file as well."""


@dataclass(frozen=True)
class Writer:
    """A command that writes files, and their names."""

    words: tuple[str, ...]
    outputs: tuple[str, ...]
    has_old: bool = True
    """Whether it can be tried with outputs that exist."""


HOOK = ("up.py", "test_up.py", "up_old.pth", "up_new.pth")
WRITERS = {
    "migrate": Writer(
        ("migrate", "old.pth", "-o", "new.pth", *MODULE, "--save-plan", "p.toml", *REPORTS),
        ("new.pth", "new.pth.ckptool.json", "p.toml", "r.json", "r.md"),
    ),
    "migrate with a hook": Writer(
        ("migrate", "old.pth", "-o", "new.safetensors", *MODULE, "--emit-hook", "up.py",
         "--save-plan", "p.toml"),
        ("new.safetensors", "p.toml", *HOOK),
    ),
    "migrate into shards": Writer(
        ("migrate", "old.pth", "-o", "new", *MODULE, "--to", "safetensors",
         "--max-shard-size", "50B", "--save-plan", "p.toml", *REPORTS),
        ("new/", "p.toml", "r.json", "r.md"),
    ),
    "convert": Writer(
        ("convert", "old.pth", "-o", "new.safetensors", *REPORTS),
        ("new.safetensors", "r.json", "r.md"),
    ),
    "lock": Writer(
        ("lock", "old.pth", "-o", "new.lock.json", *REPORTS),
        ("new.lock.json", "r.json", "r.md"),
    ),
    "lock --golden": Writer(
        ("lock", "old.pth", "-m", "net:Old", "--golden", "g.safetensors",
         "--input", "float32[2,4]", *REPORTS),
        ("g.safetensors", "r.json", "r.md"),
    ),
    "gate": Writer(
        ("gate", "old.pth", "--baseline", "b.json", "--update-baseline", *REPORTS),
        ("b.json", "r.json", "r.md"), has_old=False,
    ),
    "init": Writer(("init", ".", *REPORTS), ("ckptool.toml", "r.json", "r.md"), has_old=False),
    "revision": Writer(
        ("revision", "-m", "first", "--module", "net:Net", "--in-process", *REPORTS),
        ("ckpt_migrations/", "r.json", "r.md"), has_old=False,
    ),
    "inspect": Writer(("inspect", "old.pth", *REPORTS), ("r.json", "r.md")),
}  # fmt: skip
REPLACING = {name: writer for name, writer in WRITERS.items() if writer.has_old}
CALLS = ("fsync", "link", "rename", "replace")
MORE_CALLS = (*CALLS, "mkdir", "unlink", "rmdir")


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        write_project(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a forked process has none of the threads that ran before
        yield folder
        torch.set_num_threads(threads)


@contextmanager
def copy_folder(folder: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=folder.parent) as name:
        for file in folder.iterdir():
            (Path(name) / file.name).write_bytes(file.read_bytes())
        yield Path(name)


def run_once(folder: Path, writer: Writer) -> dict[str, bytes | None]:
    """Return the files that it writes; what it imports is there afterwards in forked processes."""
    with copy_folder(folder) as copy:
        before = read_all(copy)
        ran = run_in_process(*writer.words, cwd=copy)
        assert ran.code in {0, 1}, ran.err
        written = {name: c for name, c in read_all(copy).items() if name not in before}
    assert list_missing(writer, written) == []
    return written


def list_missing(writer: Writer, changed: Iterable[str]) -> list[str]:
    """Return the outputs that are not among the changed files, or folders of them."""
    return [
        name
        for name in writer.outputs
        if not any(path == name or (name[-1] == "/" and path.startswith(name)) for path in changed)
    ]


def put_old(folder: Path, writer: Writer) -> None:
    for name in writer.outputs:
        if name.endswith("/"):
            (folder / name).mkdir()
            (folder / name / "previous").write_bytes(OLD)
        else:
            (folder / name).write_bytes(OLD)


def run_forked(
    folder: Path, words: tuple[str, ...], prepare: Callable[[], None]
) -> tuple[int, str]:
    """Run the command in a forked process after `prepare`; return its exit code and its errors."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        prepare()
        ran = run_in_process(*words, cwd=folder)
        os.write(writing, ran.err.encode()[:4000])
        os._exit(ran.code)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def act_at(point: int, calls: tuple[str, ...], act: Callable[[], None]) -> Callable[[], None]:
    """Return what makes call number `point` of this process to the system do `act` first."""
    count = 0

    def counting(call):
        def counted(*args, **named):
            nonlocal count
            count += 1
            if count == point:
                act()
            return call(*args, **named)

        return counted

    def prepare() -> None:
        for name in calls:
            setattr(os, name, counting(getattr(os, name)))
        atomic._exchange_paths = counting(atomic._exchange_paths)

    return prepare


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _iter_points(
    folder: Path, writer: Writer, calls: tuple[str, ...], act: Callable[[], None], *, old: bool
) -> Iterator[tuple[int, int, str, dict[str, bytes | None]]]:
    """Yield point, exit code, errors and files for each call at which `act` happened."""
    words = (*writer.words, *(("--force",) if old else ()))
    run_once(folder, writer)
    for point in range(1, 200):
        with copy_folder(folder) as copy:
            if old:
                put_old(copy, writer)
            before = read_all(copy)
            code, err = run_forked(copy, words, act_at(point, calls, act))
            after = read_all(copy)
            is_over = code in {0, 1} and after != before and not err
            yield point, code, err, {name: b for name, b in after.items() if before.get(name) != b}
            assert old or before.keys() <= after.keys()
            if is_over:
                return
    raise AssertionError("the command did not come to its end")


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", WRITERS)
def test_where_one_output_fails_none_appears(name, old, folder):
    writer = WRITERS[name]
    if old and not writer.has_old:
        pytest.skip("it has outputs that it does not replace")
    codes = []
    for point, code, err, changed in _iter_points(folder, writer, CALLS, fail, old=old):
        codes.append(code)
        if code == 2:
            assert changed == {}, point
            (line,) = err.splitlines()
            assert line.startswith("ckptool: "), line
            assert "no space left on device" in line.lower(), line
        else:
            assert list_missing(writer, changed) == [], point
    assert codes[-1] in {0, 1}
    assert codes.count(2) >= len(writer.outputs)


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, signal.SIGTERM) for name in WRITERS]
    + [(name, number) for name in ("lock", "convert") for number in (signal.SIGINT, signal.SIGHUP)],
)
def test_a_signal_at_any_call_leaves_all_outputs_or_none(name, number, folder):
    writer = WRITERS[name]

    def act() -> None:
        os.kill(os.getpid(), number)

    codes = set()
    for point, code, err, changed in _iter_points(folder, writer, MORE_CALLS, act, old=False):
        codes.add(code)
        assert code in {0, 1, 128 + number}, (point, code, err)
        assert not changed or list_missing(writer, changed) == [], point
        assert not any(".ckptool-" in path for path in changed), point
        if code == 128 + number:
            assert err.splitlines()[-1].startswith("ckptool: ended by SIG")
    assert 128 + number in codes


@pytest.mark.parametrize("name", REPLACING)
def test_after_kill_9_at_any_call_each_output_is_whole_and_the_next_run_is_not_disturbed(
    name, folder
):
    writer = REPLACING[name]
    words = (*writer.words, "--force")
    run_once(folder, writer)
    for point in range(1, 100):
        with copy_folder(folder) as copy:
            put_old(copy, writer)
            prepare = act_at(point, CALLS, lambda: os.kill(os.getpid(), signal.SIGKILL))
            code, _ = run_forked(copy, words, prepare)
            assert list_missing(writer, read_all(copy)) == [], point
            assert code in {0, -signal.SIGKILL}
            code_again, err = run_forked(copy, words, lambda: None)
            assert (code_again, err) == (0, ""), point
            after = read_all(copy)
            assert not any(".ckptool-" in path for path in after), point
            assert OLD not in after.values(), point
            if code == 0:
                return
    raise AssertionError("the command did not come to its end")


@pytest.mark.parametrize(
    "name", sorted(WRITERS.keys() - {"revision"})
)  # it does without its fixture
def test_a_limit_of_file_size_between_two_outputs(name, folder):
    """As on a full disk: what is smaller can be written, and what is larger cannot."""
    writer = WRITERS[name]
    sizes = {len(c) for c in run_once(folder, writer).values() if c and len(c) > MESSAGE_NBYTES}
    for size in sorted(sizes):
        with copy_folder(folder) as copy:
            before, limit = read_all(copy), (size - 1, size - 1)
            code, err = run_forked(
                copy, writer.words, lambda limit=limit: resource.setrlimit(
                    resource.RLIMIT_FSIZE, limit
                ),
            )  # fmt: skip
            assert code == 2, size
            (line,) = err.splitlines()
            assert line.startswith("ckptool: "), line
            assert read_all(copy) == before, size
