"""What `revision` drafts: from a lock, in Python, with a fixture of the user, and of two heads."""

import pytest
import torch
from paths import ROOT
from revisions.sample_nets import Net6
from revisions.sample_project import MODULES, build_net, configure, list_files
from safetensors.torch import load_file

import ckptool
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.errors import RevisionError, UsageError
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.revisions.chain import read_chain
from ckptool.revisions.recorded_state import RecordedState, format_state, parse_state

X = torch.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lock_of_an_earlier_state_is_the_first_revision(folder):
    ckptool.lock(module=f"{MODULES}:Net2", output=folder / "ckpt.lock.json")
    report = ckptool.revision("mask is a buffer", config=configure(folder, "Net3"))
    assert [r.message for r in report.revisions] == [
        "as locked in ckpt.lock.json",
        "mask is a buffer",
    ]
    old = build_net(2)
    torch.save(old.state_dict(), "old.pth")
    ckptool.upgrade("old.pth", "new.pth", config=configure(folder, "Net3"))
    assert torch.load("new.pth").keys() == build_net(3).state_dict().keys()


def test_a_revision_has_the_same_name_in_every_folder(tmp_path, monkeypatch):
    names = []
    for place in ("here", "there/below"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        ckptool.lock(module=f"{MODULES}:Net2", output=folder / "ckpt.lock.json")
        report = ckptool.revision("mask is a buffer", config=configure(folder, "Net3"))
        assert (folder / "ckpt_migrations" / "values").exists()
        names.append([revision.revision for revision in report.revisions])
    assert names[0] == names[1]


def test_a_lock_of_todays_state_is_no_revision(folder):
    ckptool.lock(module=f"{MODULES}:Net2", output=folder / "ckpt.lock.json")
    report = ckptool.revision("the first one", config=configure(folder, "Net2"))
    assert [r.message for r in report.revisions] == ["the first one"]


def test_nothing_changed(repository):
    with pytest.raises(RevisionError, match="nothing changed since 0006_unused_is_dropped"):
        ckptool.revision("nothing", config=configure(repository, "Net6"))


@pytest.mark.parametrize("message", [None, "", "  "])
def test_a_message_is_needed(folder, message):
    with pytest.raises(UsageError, match="needs a message"):
        ckptool.revision(message, config=configure(folder, "Net1"))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((), "needs today's module: --module package.module:Name"),
        (("Net1", "Net2"), f"--module {MODULES}:Net1, --module {MODULES}:Net2"),
    ],
)
def test_a_module_that_is_not_known_is_asked_for_by_the_option_that_takes_it(
    folder, run_command, entries, words
):
    """It said -m, which is the message of a revision."""
    (folder / "ckptool.toml").write_text(
        "\n".join(f'[[models]]\npath = "{n}.pth"\nmodule = "{MODULES}:{n}"' for n in entries)
    )
    ran = run_command("revision", "-m", "the first one", "--dry-run", cwd=folder)
    assert (ran.code, words in ran.err) == (2, True), ran.err
    if entries:
        chosen = words.split(", ")[0].split()
        places = ("-I", ROOT / "tests")
        ran = run_command("revision", "-m", "x", "--dry-run", *chosen, *places, cwd=folder)
        assert ran.code == 0, ran.err


def test_questions_are_asked_and_saved(folder):
    ckptool.revision("the first one", config=configure(folder, "Net1"))
    with pytest.raises(UndecidedError, match=r"--rename 'inp\.\*=body\.\*'"):
        ckptool.revision("x", config=configure(folder, "Net2"), save_plan=folder / "plan.toml")
    assert len(list_files(folder)) == 1
    text = (folder / "plan.toml").read_text()
    assert '# key = "inp' in text


def test_a_plan_that_leads_elsewhere_is_refused(folder):
    from ckptool.migration.plan.plan_file import parse_plan

    ckptool.revision("the first one", config=configure(folder, "Net1"))
    plan = parse_plan('[[ops]]\nop = "drop"\nkey = "inp.bias"\n')
    with pytest.raises(RevisionError, match="do not lead to the state of today's module"):
        ckptool.revision("x", plan=plan, config=configure(folder, "Net2"))
    assert len(list_files(folder)) == 1


def test_a_value_of_another_file_is_frozen(folder):
    ckptool.revision("the first one", config=configure(folder, "Net2"))
    torch.save({"gate": torch.tensor([1.0, 2.0, 3.0, 4.0])}, "donor.pth")
    ckptool.revision(
        "mask", config=configure(folder, "Net3"), inject={"mask": "file:donor.pth#gate"}
    )
    (folder / "donor.pth").unlink()
    torch.save(build_net(2).state_dict(), "old.pth")
    ckptool.upgrade("old.pth", "new.pth", config=configure(folder, "Net3"))
    assert torch.load("new.pth")["mask"].tolist() == [1, 2, 3, 4]


def test_a_fixture_of_the_user_is_kept_at_its_revision(folder):
    config = configure(folder, "Net1")
    old = build_net(1)
    torch.save(old.state_dict(), "mine.pth")
    ckptool.revision("the first one", fixture="mine.pth", config=config)
    fixture = folder / "ckpt_migrations" / "fixtures" / "0001_the_first_one.pth"
    assert fixture.read_bytes() == (folder / "mine.pth").read_bytes()
    row = ckptool.check(config=config).revisions[0]
    assert (row.arrives, row.loads, row.outputs) == ("passed", "passed", "passed")
    torch.save({"w": torch.ones(1)}, "other.pth")
    with pytest.raises(RevisionError, match="is at no revision"):
        ckptool.revision(
            "x", fixture="other.pth", accept_renames=True, config=configure(folder, "Net2")
        )


def test_a_dry_run_writes_nothing(folder):
    report = ckptool.revision("the first one", dry_run=True, config=configure(folder, "Net1"))
    assert report.verdict.startswith("would draft")
    assert not list(folder.iterdir())


def test_two_heads_are_merged(repository):
    """Both branches follow 0004: one renames, the other drops; the merged chain does both."""
    files = list_files(repository)
    chain = read_chain(repository / "ckpt_migrations")
    dropped = chain.revisions[5]
    text = files[5].read_text()
    # The drop follows 0004 now, and its recorded state is that of 0004 without `unused`.
    state = chain.revisions[3].state
    forms = {key: form for key, form in state.forms.items() if key != "unused"}
    branch_state = RecordedState(forms, state.ties)
    text = text.replace(
        f'parent = "{chain.revisions[4].revision}"', f'parent = "{chain.revisions[3].revision}"'
    ).replace(dropped.state.digest, branch_state.digest)
    files[5].write_text(text.replace(format_state(dropped.state), format_state(branch_state)))
    config = configure(repository, "Net6")
    assert ckptool.history(config=config).exit_code == 2
    report = ckptool.revision(merge=True, config=config)
    assert report.verdict.startswith("merged: the head is 0006_unused_is_dropped")
    assert ckptool.check(config=config).exit_code == 0
    old = build_net(1)
    torch.save(old.state_dict(), "old.pth")
    ckptool.upgrade("old.pth", "new.safetensors", config=config)
    module = Net6().eval()
    module.load_state_dict(load_file("new.safetensors"))
    assert torch.equal(module(X), old(X))
    with pytest.raises(RevisionError, match="has one head"):
        ckptool.revision(merge=True, config=config)


def test_each_class_of_a_project_has_its_chain(folder):
    models = tuple(
        ModelEntry(path=f"{name}*.pth", module=f"{MODULES}:{name}", revisions=f"chains/{name}")
        for name in ("Net1", "TiedNet1")
    )
    config = ProjectConfig(Settings(models=models), folder, folder / "ckptool.toml")
    for name in ("Net1", "TiedNet1"):
        ckptool.revision("the first one", module=f"{MODULES}:{name}", config=config)
        assert len(list((folder / "chains" / name).glob("*.toml"))) == 1
    torch.save(build_net(1).state_dict(), folder / "Net1-a.pth")
    report = ckptool.current(folder / "Net1-a.pth", config=config)
    assert report.checkpoints[0].is_head
    with pytest.raises(UsageError, match="several chains: --chain names one of"):
        ckptool.history(config=config)
    assert ckptool.history(module=f"{MODULES}:Net1", config=config).exit_code == 0
    for name in ("Net1", "TiedNet1"):
        report = ckptool.check(chain=f"chains/{name}", config=config)  # its folder names the module
        assert (report.exit_code, report.path) == (0, f"chains/{name}")


@pytest.mark.parametrize(
    "key",
    ["plain", "a.b", "with space", "quote'''s", 'double"quote', "new\nline", "é", "\ud800", "="],
)
def test_every_key_can_be_recorded(key, folder):
    state = RecordedState({key: "float32 [2, 3]", "z": "object", "y": "int64 []"}, {"z": key})
    text = format_state(state)
    assert parse_state(text) == state
    assert "'''" not in text
    import tomllib

    assert tomllib.loads(f"a = '''\n{text}'''")["a"] == text
    assert folder.exists()


def test_a_revision_of_another_module_is_not_put_into_the_chain(repository):
    """It asked to drop all keys, and to inject all others, and nothing else."""
    words = r"the chain is of .*:Net6, and torch\.nn:Linear has none of its keys: --chain FOLDER"
    with pytest.raises(UndecidedError, match=words):
        ckptool.revision(
            "linear",
            module="torch.nn:Linear",
            kwargs={"in_features": 2, "out_features": 3},
            config=configure(repository, "Net6"),
        )
    assert len(list_files(repository)) == 6
