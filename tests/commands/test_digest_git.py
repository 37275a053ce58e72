"""`git diff` and `git log -p` of checkpoints, by a real git with the settings of docs/digest.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import nn

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here"),
]


class Repository:
    """A repository with the textconv set up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self("init", "-q")
        command = f'"{sys.executable}" -m ckptool digest --textconv'
        self("config", "diff.ckptool.textconv", command)
        (folder / ".gitattributes").write_text("*.pth diff=ckptool\n*.safetensors diff=ckptool\n")

    def __call__(self, *words: str) -> str:
        who = {
            f"GIT_{role}_{what}": "x@y"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_PAGER": "cat"}
        done = subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env={**os.environ, **who, **quiet, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def commit(self, message: str) -> None:
        self("add", "-A")
        self("commit", "-q", "-m", message)


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def changes(text: str) -> list[str]:
    """Return the lines of a diff that were taken out or put in."""
    return [
        s for s in text.splitlines() if s.startswith(("+", "-")) and s[:3] not in {"+++", "---"}
    ]


def net() -> dict:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()


def test_two_versions(repository):
    path = repository.folder / "model.pth"
    torch.save({"epoch": 1, "model": net()}, path)
    repository.commit("one")
    later = net()
    later["1.bias"] += 1
    later["extra"] = torch.ones(2, 2)
    torch.save({"epoch": 2, "model": later}, path)
    found = changes(repository("diff"))
    assert found[:2] == ["-entry epoch = 1", "+entry epoch = 2"]
    assert [line.rsplit(" ", 1)[0] for line in found[2:]] == [
        "-tensor model.1.bias float32 1",
        "+tensor model.1.bias float32 1",
        "+tensor model.extra float32 2x2",
    ]
    assert found[2] != found[3]
    repository.commit("two")
    assert changes(repository("log", "-p", "-1", "--", "model.pth")) == found


def test_a_save_of_the_same_shows_nothing(repository):
    path = repository.folder / "model.pth"
    torch.save(net(), path)
    repository.commit("one")
    torch.save(dict(reversed(net().items())), path)
    assert repository("status", "--porcelain").strip() == "M model.pth"
    assert changes(repository("diff")) == []


def test_files_that_cannot_be_read_do_not_end_the_diff(repository):
    """Git dies where its textconv fails: a pointer, a torn file and an empty one are a line."""
    for name in ("pointer.pth", "torn.pth", "empty.pth", "gone.pth", "good.pth"):
        torch.save(net(), repository.folder / name)
    repository.commit("one")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3\n"
    (repository.folder / "pointer.pth").write_text(pointer)
    torn = repository.folder / "torn.pth"
    torn.write_bytes(torn.read_bytes()[:700])
    (repository.folder / "empty.pth").write_bytes(b"")
    (repository.folder / "gone.pth").unlink()
    torch.save(net() | {"0.bias": torch.ones(3)}, repository.folder / "good.pth")
    found = repository("diff")
    lines = [line for line in changes(found) if "unreadable" in line]
    assert len(lines) == 3
    assert any("git-lfs" in line.lower().replace(" ", "-") for line in lines)
    assert "+tensor 0.bias float32 3" in found


def test_two_pointers_differ(repository):
    """What cannot be read is named by its bytes, so that a change of it is seen."""
    path = repository.folder / "model.pth"
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 3\n"
    path.write_text(text.format("0" * 64))
    repository.commit("one")
    path.write_text(text.format("1" * 64))
    assert len(changes(repository("diff"))) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(90)),
        lambda path: path.mkdir(),
        lambda path: torch.save({"epoch": 3}, path),
    ],
    ids=["missing", "empty", "hostile", "torn zip", "folder", "no tensors"],
)
def test_textconv_exits_0_whatever_the_file_holds(run_command, tmp_path, make):
    make(tmp_path / "model.pth")
    ran = run_command("digest", "--textconv", tmp_path / "model.pth")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") >= 1


def test_textconv_prints_one_path(ckptool, tmp_path):
    ran = ckptool("digest", "--textconv", "a", "b")
    assert ran.code == 2
    assert "one PATH" in ran.err
