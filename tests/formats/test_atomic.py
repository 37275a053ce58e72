"""A file or folder is complete at its name, or absent: also beside others, and after dead runs."""
# ruff: noqa: PTH208, PT012

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from paths import ROOT

from ckptool.errors import WriteError
from ckptool.formats.files import atomic, output_group
from ckptool.formats.files.atomic import check_target, open_pending_output
from ckptool.formats.files.output_group import (
    commit_outputs,
    gather_outputs,
    write_file,
    write_files,
    write_separately,
)
from ckptool.formats.files.signals import Interrupted, block_signals, raise_on_signal


def fill(out, data=b"new") -> None:
    if out.path.is_dir():
        (out.path / "part").write_bytes(data)
    else:
        os.write(out.descriptor, data)


def content(path: Path) -> bytes | None:
    inner = path / "part" if path.is_dir() else path
    return inner.read_bytes() if inner.exists() else None


def old(path: Path, *, folder: bool) -> None:
    if folder:
        path.mkdir()
        (path / "part").write_bytes(b"old")
        (path / "more").write_bytes(b"old")
    else:
        path.write_bytes(b"old")


both = pytest.mark.parametrize("folder", [False, True])


@both
def test_it_appears_whole_and_with_the_umask(tmp_path, folder):
    before = os.umask(0o027)
    try:
        with open_pending_output(tmp_path / "x", force=False, folder=folder) as out:
            fill(out)
            assert content(tmp_path / "x") is None
            commit_outputs(out)
    finally:
        os.umask(before)
    assert content(tmp_path / "x") == b"new"
    assert (tmp_path / "x").stat().st_mode & 0o777 == (0o750 if folder else 0o640)
    assert os.listdir(tmp_path) == ["x"]


@both
def test_it_replaces_in_one_step_when_forced(tmp_path, folder):
    old(tmp_path / "x", folder=folder)
    with open_pending_output(tmp_path / "x", force=True, folder=folder) as out:
        fill(out)
        assert content(tmp_path / "x") == b"old"
        commit_outputs(out)
    assert content(tmp_path / "x") == b"new"
    assert os.listdir(tmp_path) == ["x"]
    assert not folder or os.listdir(tmp_path / "x") == ["part"]


@both
def test_what_fails_leaves_nothing_behind(tmp_path, folder):
    def fail() -> None:
        raise KeyError("changed")

    old(tmp_path / "x", folder=folder)
    with (
        pytest.raises(KeyError),
        open_pending_output(tmp_path / "x", force=True, folder=folder) as out,
    ):
        fill(out)
        commit_outputs(out, check=fail)
    assert content(tmp_path / "x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


@both
def test_what_somebody_else_wrote_meanwhile_is_kept(tmp_path, folder):
    with (
        pytest.raises(WriteError, match=r"by another process in the meantime|already exists"),
        open_pending_output(tmp_path / "x", force=False, folder=folder) as out,
    ):
        fill(out)
        old(tmp_path / "x", folder=folder)
        commit_outputs(out)
    assert content(tmp_path / "x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.process
@both
def test_what_a_dead_run_left_is_removed_and_what_a_live_one_has_is_not(tmp_path, folder):
    script = (
        "import os, sys, signal\nfrom pathlib import Path\n"
        "from ckptool.formats.files.atomic import open_pending_output\n"
        f"with open_pending_output(Path('x'), force=True, folder={folder}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = ROOT
    dead = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )  # fmt: skip
    assert dead.returncode == -signal.SIGKILL
    (stale,) = os.listdir(tmp_path)
    with open_pending_output(tmp_path / "other", force=False, folder=folder):
        assert stale in os.listdir(tmp_path)  # it is to another target
    with open_pending_output(tmp_path / "x", force=False, folder=folder) as first:
        assert os.listdir(tmp_path) == [first.path.name]
        with open_pending_output(tmp_path / "x", force=False, folder=folder) as second:
            assert set(os.listdir(tmp_path)) == {first.path.name, second.path.name}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("before", [None, b"older"])
def test_of_two_outputs_the_first_is_taken_back_where_the_second_fails(tmp_path, before):
    if before is not None:
        (tmp_path / "a").write_bytes(before)
    with (
        open_pending_output(tmp_path / "a", force=True) as first,
        open_pending_output(tmp_path / "b", force=False) as second,
    ):
        (tmp_path / "b").write_bytes(b"old")
        with pytest.raises(WriteError):
            commit_outputs(first, second)
    assert content(tmp_path / "a") == before
    assert content(tmp_path / "b") == b"old"
    assert len(os.listdir(tmp_path)) == (1 if before is None else 2)


@both
def test_of_a_folder_and_a_file_both_are_taken_back(tmp_path, folder, monkeypatch):
    """Also what replaced an older one, and where only the flush of the folder's entry fails."""
    for name in ("a", "b"):
        old(tmp_path / name, folder=folder)

    def fail(_folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(output_group, "sync_folder", fail)
    with (
        open_pending_output(tmp_path / "a", force=True, folder=folder) as first,
        open_pending_output(tmp_path / "new", force=False, folder=folder) as second,
        open_pending_output(tmp_path / "b", force=True, folder=folder) as third,
    ):
        for out in (first, second, third):
            fill(out)
        with pytest.raises(WriteError, match="not written"):
            commit_outputs(first, second, third)
    assert content(tmp_path / "a") == content(tmp_path / "b") == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_file_system_that_exchanges_nothing_replaces_and_restores_as_well(tmp_path, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(atomic, "_exchange_paths", refuse)
    (tmp_path / "a").write_bytes(b"old")
    with (
        open_pending_output(tmp_path / "a", force=True) as first,
        open_pending_output(tmp_path / "b", force=False) as second,
    ):
        fill(first)
        (tmp_path / "b").write_bytes(b"other")
        with pytest.raises(WriteError):
            commit_outputs(first, second)
    assert content(tmp_path / "a") == b"old"
    write_file(tmp_path / "a", b"new", force=True)
    assert (content(tmp_path / "a"), sorted(os.listdir(tmp_path))) == (b"new", ["a", "b"])


def test_what_waits_for_its_group_is_not_removed_by_another_command(tmp_path):
    """What is replaced has the temporary name until the group is complete."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old")
    with (
        open_pending_output(tmp_path / "a", force=True) as first,
        open_pending_output(tmp_path / "b", force=False) as second,
    ):
        fill(first)
        first.move_to_target()
        with open_pending_output(tmp_path / "a", force=True):
            pass
        first.undo_move()
        assert second.path.exists()
    assert content(tmp_path / "a") == b"old"


@pytest.mark.parametrize("fails", [False, True])
def test_a_group_appears_at_its_end_with_its_folders_or_not_at_all(tmp_path, fails):
    def write() -> None:
        with gather_outputs() as group:
            group.create_folder(tmp_path / "x" / "y")
            write_file(tmp_path / "x" / "y" / "a", b"new", force=False)
            with gather_outputs():
                write_file(tmp_path / "b", b"new", force=False)
            assert not (tmp_path / "b").exists()
            with write_separately():
                write_file(tmp_path / "apart", b"new", force=False)
            assert (tmp_path / "apart").exists()
            if fails:
                raise KeyError("later")

    with pytest.raises(KeyError) if fails else nullcontext():
        write()
    assert sorted(os.listdir(tmp_path)) == (["apart"] if fails else ["apart", "b", "x"])
    assert content(tmp_path / "x" / "y" / "a") == (None if fails else b"new")


def test_a_file_is_removed_with_the_others_or_not_at_all(tmp_path):
    for name in ("a", "gone"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(WriteError, match="already exists"):
        write_files({tmp_path / "a": b"new"}, force=False, removed=[tmp_path / "gone"])
    with gather_outputs(), suppress(WriteError):
        write_files({tmp_path / "b": b"new"}, force=False, removed=[tmp_path / "gone"])
        (tmp_path / "c").mkdir()
        write_file(tmp_path / "c", b"new", force=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("how", ["same", "dots", "hard link", "symbolic link", "linked folder"])
def test_an_input_is_refused_through_any_link(tmp_path, how):
    source = tmp_path / "in" / "x"
    source.parent.mkdir()
    source.write_bytes(b"source")
    target = {"same": source, "dots": tmp_path / "in" / ".." / "in" / "x"}.get(how, tmp_path / "y")
    if how == "hard link":
        target.hardlink_to(source)
    elif how == "symbolic link":
        target.symlink_to(source)
    elif how == "linked folder":
        (tmp_path / "l").symlink_to(tmp_path / "in")
        target = tmp_path / "l" / "x"
    with pytest.raises(WriteError, match="itself, which is never overwritten: choose another file"):
        check_target(target, [source], force=True, folder=False)


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("file", False, "already exists: choose another name, or replace it with --force"),
        ("file", True, "is a file, and a folder would be written"),
        ("folder", False, "is a folder, and a file would be written"),
        ("no/such", False, "the folder .*no does not exist: create it first"),
        ("file/x", False, "does not exist: create it first"),
        ("n" * 300, False, "not written: the name is longer than a file's name can be"),
    ],
)
def test_a_target_that_cannot_be(tmp_path, name, folder, message):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=message):
        check_target(tmp_path / name, [], force=False, folder=folder)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_long_name_has_room_for_its_temporary_one(tmp_path):
    target = tmp_path / ("n" * 255)
    with open_pending_output(target, force=False) as out:
        fill(out)
        commit_outputs(out)
    assert target.read_bytes() == b"new"


def test_a_signal_that_another_thread_gets_waits_for_the_end_of_the_moves():
    end, steps = threading.Event(), []
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with pytest.raises(Interrupted), raise_on_signal():
            with block_signals():
                signal.pthread_kill(thread.ident, signal.SIGTERM)
                end.wait(0.2)
                steps.append("moved")
            steps.append("behind the moves")
    finally:
        end.set()
        thread.join()
    assert steps == ["moved"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up_once(tmp_path, number):
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted) as error,
        raise_on_signal(),
        open_pending_output(tmp_path / "x", force=False),
    ):
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # the second one may not stop the cleaning up
    assert error.value.code == 128 + number
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Interrupted),
        (signal.SIGHUP, Interrupted),
    ],
)
def test_a_signal_that_threading_turned_into_another_error(number, kind):
    """A signal in `Condition.__enter__` leaves it as "RuntimeError: release unlocked lock"."""
    condition = threading.Condition()
    with pytest.raises(kind), raise_on_signal(), condition:
        try:
            os.kill(os.getpid(), number)
        finally:
            condition.release()
    with pytest.raises(RuntimeError, match="of its own"), raise_on_signal():
        raise RuntimeError("of its own")


def test_a_lock_is_held_while_it_is_written(tmp_path):
    with open_pending_output(tmp_path / "x", force=False) as out:
        other = os.open(out.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
