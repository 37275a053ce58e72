"""Two branches of a repository that each add a revision, and two commands at the same time."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from revisions.sample_project import list_files
from torch import nn

import ckptool
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.errors import CkptoolError, RevisionError, UsageError

X = torch.linspace(-1, 1, 8).reshape(2, 4)
FUNCTION = """
def upgrade(state):
    state["scale"] = state["scale"].float()
    return state
"""


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("scale", torch.rand(4).half())

    def forward(self, x):
        return self.a(x) * self.scale.float()


class Renamed(nn.Module):
    """One branch: `a` is `b`."""

    def __init__(self):
        super().__init__()
        self.b = nn.Linear(4, 4)
        self.register_buffer("scale", torch.rand(4).half())

    def forward(self, x):
        return self.b(x) * self.scale.float()


class Wide(Base):
    """The other branch: `scale` is float32."""

    def __init__(self):
        super().__init__()
        self.scale = self.scale.float()


class Merged(Renamed):
    def __init__(self):
        super().__init__()
        self.scale = self.scale.float()


def configure(folder, module_class):
    entry = ModelEntry(
        path="*", module=f"{__name__}:{module_class.__name__}", inputs=("float32[2,4]",)
    )
    return ProjectConfig(Settings(models=(entry,)), folder, folder / "ckptool.toml")


@pytest.fixture
def branches(tmp_path, monkeypatch):
    """The folder of a repository into which a branch with a Python revision was merged."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    monkeypatch.chdir(one)
    ckptool.revision("the first one", config=configure(one, Base))
    shutil.copytree(one, other)
    ckptool.revision("a is b", accept_renames=True, config=configure(one, Renamed))
    monkeypatch.chdir(other)
    report = ckptool.revision("scale in float", python=True, config=configure(other, Wide))
    Path("ckpt_migrations", report.revisions[-1].python).write_text(FUNCTION)
    torch.save(Wide().state_dict(), "branch.pth")
    ckptool.upgrade("branch.pth", one / "branch.safetensors", config=configure(other, Wide))
    shutil.copytree(other, one, dirs_exist_ok=True)
    monkeypatch.chdir(one)
    return one


def test_a_branch_with_a_function_is_put_after_the_other_head(branches):
    config = configure(branches, Merged)
    report = ckptool.revision(merge=True, config=config)
    assert report.verdict == "merged: the head is 0002_scale_in_float: 0002_scale_in_float.py"
    old = Base()
    torch.save(old.state_dict(), "old.pth")
    ckptool.upgrade("old.pth", "new.pth", config=config)
    module = Merged()
    module.load_state_dict(torch.load("new.pth"))
    assert torch.equal(module(X), old(X))
    assert module.scale.dtype == torch.load("new.pth")["scale"].dtype == torch.float32


def test_the_fixture_of_a_branch_is_of_a_state_that_is_no_longer_in_the_chain(branches):
    """`check` failed for it after every merge."""
    config = configure(branches, Merged)
    fixtures = branches / "ckpt_migrations" / "fixtures"
    report = ckptool.revision(merge=True, config=config)
    assert not list(fixtures.glob("0002_scale_in_float*"))
    assert any("is removed: it is of the state before the merge" in note for note in report.notes)
    checked = ckptool.check(config=config)
    assert checked.exit_code == 0
    skipped = {item.what: item.reason for item in checked.skipped}
    reason = "it has none: ckptool revision --fixture FILE keeps one"
    assert skipped["fixture of 0002_scale_in_float"] == reason
    torch.save(Merged().state_dict(), "merged.pth")
    kept = ckptool.revision(fixture="merged.pth", config=config)
    assert kept.verdict == "kept a fixture"
    assert len(list(fixtures.glob("0002_scale_in_float*"))) == 2
    row = ckptool.check(config=config).revisions[-1]
    assert (row.arrives, row.loads, row.outputs) == ("passed", "passed", "passed")
    with pytest.raises(RevisionError, match="which has a fixture already"):
        ckptool.revision(fixture="merged.pth", config=config)


def test_a_file_of_the_branch_is_not_taken_for_one_of_the_merged_chain(branches):
    """Its stamp was that of the merged revision, whose steps before it never saw the file."""
    config = configure(branches, Merged)
    ckptool.revision(merge=True, config=config)
    row = ckptool.current("branch.safetensors", config=config).checkpoints[0]
    assert row.known_by == "newer than the code"
    assert not row.is_head


def test_a_function_that_fails_over_zeros_has_a_way_out(branches):
    path = branches / "ckpt_migrations" / "0002_scale_in_float.py"
    path.write_text("def upgrade(state):\n    raise ValueError('no zeros')\n")
    before = {p: p.read_bytes() for p in list_files(branches)}
    with pytest.raises(RevisionError, match="cannot be put after the other head") as caught:
        ckptool.revision(merge=True, config=configure(branches, Merged))
    assert "ckptool revision --python -m 'scale in float'" in str(caught.value)
    assert len(caught.value.lines) == 1
    assert {p: p.read_bytes() for p in list_files(branches)} == before


def test_no_code_is_run_if_it_is_not_to_be_run(branches):
    path = branches / "ckpt_migrations" / "0002_scale_in_float.py"
    path.write_text("raise SystemExit('ran')\n")
    with pytest.raises(UsageError, match="is code of the project, and --no-config runs none"):
        ckptool.revision(merge=True, run_python=False, config=configure(branches, Merged))


def test_two_commands_at_the_same_time_do_not_give_two_heads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckptool.revision("the first one", config=configure(tmp_path, Base))
    from ckptool.commands.revisions import revision as command

    barrier, write = threading.Barrier(2, timeout=60), command.write_chain_files

    def write_together(*arguments, **options):
        barrier.wait()
        write(*arguments, **options)

    monkeypatch.setattr(command, "write_chain_files", write_together)
    errors = []

    def draft(message):
        try:
            config = configure(tmp_path, Renamed)
            ckptool.revision(message, accept_renames=True, config=config)
        except CkptoolError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=draft, args=(f"by {name}",)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert "was changed meanwhile, 0002_by_" in errors[0]
    assert len(list_files(tmp_path)) == 2
    assert ckptool.history(config=configure(tmp_path, Renamed)).exit_code == 0


def test_a_revision_that_is_drafted_again_keeps_its_fixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckptool.revision("the first one", config=configure(tmp_path, Base))
    config = configure(tmp_path, Renamed)
    ckptool.revision("a is b", accept_renames=True, config=config)
    fixture = tmp_path / "ckpt_migrations" / "fixtures" / "0002_a_is_b.pth"
    before = fixture.read_bytes()
    list_files(tmp_path)[1].unlink()
    report = ckptool.revision("a is b", accept_renames=True, config=config)
    assert "0002_a_is_b.pth is kept as the fixture of 0002_a_is_b" in report.notes
    assert fixture.read_bytes() == before
    assert ckptool.check(config=config).exit_code == 0
