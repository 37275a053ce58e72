"""What can be wrong with a chain, and with a file's place in it: each is one clear line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from revisions.sample_project import build_net, configure, list_files
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptool
from ckptool.errors import CkptoolError, RevisionError

CONFIG = '[[models]]\npath = "*"\nmodule = "revisions.sample_nets:Net6"\n'


@pytest.fixture
def ask(repository, run_command):
    """Run a command in the sample; it must say one line on standard error and exit 2."""
    (repository / "ckptool.toml").write_text(CONFIG)
    torch.save(build_net(1).state_dict(), repository / "old.pth")

    def run(*words):
        ran = run_command(*words, cwd=repository)
        assert ran.code == 2, ran
        assert ran.out == ""
        lines = ran.err.splitlines()
        assert len(lines) == 1, ran.err
        assert "Traceback" not in ran.err
        return lines[0]

    return run


COMMANDS = {
    "history": ("history",),
    "current": ("current", "old.pth"),
    "upgrade": ("upgrade", "old.pth", "-o", "new.pth"),
    "check": ("check",),
    "gate": ("gate", "old.pth"),
}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def read_id(path):
    return path.read_text().split('revision = "')[1].split('"')[0]


def branch(repository):
    """Give 0005 a brother: a second revision that follows 0004."""
    files = list_files(repository)
    copy = files[4].with_name("0005_scale_another_way.toml")
    copy.write_text(files[4].read_text().replace(read_id(files[4]), "abcdef0123"))
    return copy


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"history"}))
def test_two_heads(ask, repository, command):
    branch(repository)
    line = ask(*COMMANDS[command])
    assert "2 heads, 0005_scale_another_way, 0006_unused_is_dropped" in line
    assert "ckptool revision --merge" in line


def test_history_shows_two_heads(repository):
    branch(repository)
    report = ckptool.history(config=configure(repository, "Net6"))
    assert report.exit_code == 2
    assert "2 heads" in report.verdict
    assert [row.is_head for row in report.revisions].count(True) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_revision(ask, repository, command):
    path = list_files(repository)[2]
    identifier = read_id(path)
    path.unlink()
    line = ask(*COMMANDS[command])
    assert f"0004_qkv_is_three_layers follows revision {identifier}, which is missing" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_parents_in_a_cycle(ask, repository, command):
    files = list_files(repository)
    edit(files[1], f'parent = "{read_id(files[0])}"', f'parent = "{read_id(files[4])}"')
    line = ask(*COMMANDS[command])
    assert "0003_mask_is_a_buffer, 0004_qkv_is_three_layers, 0005_scale_in_float32" in line
    assert "follow each other: correct `parent`" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "schema = [" + text, "is not valid TOML"),
        (lambda text: text + "x = 1\n" * 3, "is not valid TOML"),
        (lambda text: text.replace("schema = 1", "schema = 9"), "schema 9 is not supported"),
        (lambda text: text.replace("message = ", "mesage = "), "did you mean `message`?"),
        (lambda text: text.replace("float32 [2] head.bias", "float32 [3] head.bias"), "edited"),
        (lambda text: text.replace("float32 [2] head.bias", "nonsense"), "is not `FORM KEY`"),
        (lambda text: text.replace('op = "inject"', 'op = "run"'), "there is no operation 'run'"),
        (
            lambda text: text.replace("file:values/0003", "file:values/../../0003"),
            "is not the name of a file",
        ),
        (lambda text: text.replace("file:values/0003_mask_is", "file:/etc/passwd"), "values/ only"),
        (lambda text: text.replace("file:values/", "npz:values/"), "values/ only"),
        (lambda text: text.replace("module = ", 'python = "../evil.py"\nmodule = '), "both"),
        (lambda text: text.replace('revision = "', 'revision = "../'), "is not an identifier"),
        (lambda text: "[" * 100_000 + text, "is not valid TOML"),
        (lambda text: text.replace("date = ", "date = 'yesterday' #"), "date"),
    ],
)
@pytest.mark.parametrize("command", ["history", "upgrade"])
def test_a_damaged_file_of_a_revision(ask, repository, damage, said, command):
    path = list_files(repository)[2]
    path.write_text(damage(path.read_text()))
    line = ask(*COMMANDS[command])
    assert said in line
    assert "0003_mask_is_a_buffer.toml" in line


def test_a_python_file_elsewhere_is_never_run(ask, repository):
    (repository / "evil.py").write_text("raise SystemExit('ran')\n")
    path = list_files(repository)[4]
    for name in ("../evil.py", "/etc/passwd", "sub/evil.py", ".hidden.py", ""):
        text = path.read_text()
        edit(path, 'python = "0005_scale_in_float32.py"', f'python = "{name}"')
        if name:
            assert "is not the name of a file" in ask("history")
        path.write_text(text)
    link = path.parent / "linked.py"
    link.symlink_to(repository / "evil.py")
    edit(path, 'python = "0005_scale_in_float32.py"', 'python = "linked.py"')
    assert "linked.py is not a file in" in ask("upgrade", "old.pth", "-o", "new.pth")


def test_a_huge_file_and_a_pipe(ask, repository):
    path = list_files(repository)[2]
    with path.open("ab") as file:
        file.truncate(3 << 30)
    assert "MiB" in ask("history")
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe" in ask("history")


def stamp(path, **fields):
    """Write other values into the stamp of a safetensors file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["ckptool.provenance"])
    record["revision"] |= fields
    save_file(load_file(path), path, metadata | {"ckptool.provenance": json.dumps(record)})


@pytest.fixture
def stamped(repository, ask):
    path = repository / "stamped.safetensors"
    ckptool.upgrade(repository / "old.pth", path, config=configure(repository, "Net6"))
    assert ask
    return path


def test_a_stamp_of_another_project(ask, stamped):
    stamp(stamped, project="other-12345678")
    line = ask("upgrade", stamped.name, "-o", "x.pth")
    assert "has the stamp of another project, other-12345678" in line


def test_a_file_that_is_newer_than_the_code(ask, repository, stamped):
    stamp(stamped, id="ffffffffff")
    assert "is newer than the code" in ask("upgrade", stamped.name, "-o", "x.pth")
    report = ckptool.current(stamped, config=configure(repository, "Net6"))
    assert report.exit_code == 2
    assert report.checkpoints[0].known_by == "newer than the code"
    from revisions.sample_nets import Net6

    with pytest.raises(ckptool.LoadError, match="newer than the code"):
        ckptool.load(Net6(), stamped, revisions=repository / "ckpt_migrations")


def test_a_stamp_whose_keys_are_others(ask, repository, stamped):
    with safe_open(stamped, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(stamped) | {"extra": torch.ones(1)}, stamped, metadata)
    line = ask("upgrade", stamped.name, "-o", "x.pth")
    assert "has the stamp of 0006_unused_is_dropped, but not its keys: `extra` was added" in line
    assert repository.exists()


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '{"revision": 3}', "{" * 1000, "\0"])
def test_an_unreadable_stamp_is_none(repository, stamped, text):
    with safe_open(stamped, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(stamped), stamped, metadata | {"ckptool.provenance": text})
    report = ckptool.current(stamped, config=configure(repository, "Net6"))
    assert report.checkpoints[0].known_by == "recognised"


def test_the_record_of_a_file_that_was_replaced_is_not_believed(repository):
    config = configure(repository, "Net6")
    old, new = repository / "old.pth", repository / "new.pth"
    torch.save(build_net(1).state_dict(), old)
    ckptool.upgrade(old, new, config=config)
    assert ckptool.current(new, config=config).checkpoints[0].known_by == "stamped"
    shutil.copy(old, new)
    row = ckptool.current(new, config=config).checkpoints[0]
    assert (row.known_by, row.name) == ("recognised", "0001_the_first_one")
    assert "was not used" in row.note


def test_a_file_of_no_revision_is_said_to_be_none(ask, repository):
    torch.save({"weight": torch.ones(2, 3)}, repository / "linear.pth")
    line = ask("upgrade", "linear.pth", "-o", "x.pth")
    assert "is at no revision of this chain (the nearest is " in line
    torch.save({"epoch": 3}, repository / "empty.pth")
    assert "contains no tensors" in ask("current", "empty.pth")


def test_there_is_no_chain(tmp_path, run_command):
    for words in (("history",), ("check",), ("current", "a.pth")):
        ran = run_command(*words, cwd=tmp_path)
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1


def test_no_config_runs_no_python_revision(ask):
    line = ask("upgrade", "old.pth", "-o", "new.pth", "--no-config")
    assert "0005_scale_in_float32.py: is code of the project, and --no-config runs none" in line


def test_a_python_revision_is_announced(repository, run_command, ask):
    assert ask
    tests = Path(__file__).parent.parent
    ran = run_command("upgrade", "old.pth", "-o", "new.pth", "-I", tests, cwd=repository)
    assert ran.code == 0
    assert "0005_scale_in_float32.py is run: it is code of the project" in ran.err + ran.notices


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no')", "upgrade() raised ValueError: no"),
        ("return 3", "returned int, not a dict"),
        ("return {k: v for k, v in state.items() if k != 'scale'}", "do not lead to the state"),
        ("raise SystemExit(0)", "upgrade() raised SystemExit"),
        ("import os; os._exit(3)", "ended"),
        ("state['scale'] = object(); return state", "may change tensors only"),
    ],
)
def test_a_python_revision_that_fails(ask, repository, body, said):
    path = repository / "ckpt_migrations" / "0005_scale_in_float32.py"
    path.write_text(f"def upgrade(state):\n    {body}\n")
    line = ask("upgrade", "old.pth", "-o", "new.pth")
    assert said in line
    assert not (repository / "new.pth").exists()


def test_a_python_revision_without_its_functions(ask, repository):
    path = repository / "ckpt_migrations" / "0005_scale_in_float32.py"
    path.write_text("def upgrade(state):\n    return state | {'scale': state['scale'].float()}\n")
    ckptool.upgrade("old.pth", "new.pth", to="0005", config=configure(repository, "Net6"))
    line = ask("downgrade", "new.pth", "-o", "back.pth", "--to", "0004")
    assert "0005_scale_in_float32 cannot be undone: " in line
    assert "has no function downgrade(state)" in line
    path.write_text("this is not python(\n")
    assert "is not Python" in ask("upgrade", "old.pth", "-o", "new2.pth")


@pytest.mark.parametrize("name", ["0007", "nothing", "zzzzzz", "000"])
def test_a_revision_that_is_not_there(ask, name):
    assert "is not a revision; there are" in ask("upgrade", "old.pth", "-o", "x.pth", "--to", name)


def test_up_and_down_in_the_wrong_direction(ask, repository, stamped):
    assert "ckptool downgrade" in ask("upgrade", stamped.name, "-o", "x.pth", "--to", "0002")
    assert "ckptool upgrade" in ask("downgrade", "old.pth", "-o", "x.pth", "--to", "0002")
    assert repository.exists()


def test_every_error_of_a_chain_is_an_error_of_ckptool():
    assert issubclass(RevisionError, CkptoolError)


NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
"""


@pytest.mark.process
def test_a_module_that_no_revision_covers_is_said_to_be_so(tmp_path, monkeypatch, ckptool):
    """It ended at the keys that strict loading lacks, which `revision` has to cover."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.save({f"linear.{k}": v for k, v in torch.nn.Linear(4, 4).state_dict().items()}, "old.pth")
    module = ("--module", "net:Net")
    assert ckptool("revision", "--message", "first", *module, cwd=tmp_path).code == 0
    (tmp_path / "net.py").write_text(NET.replace("self.linear", "self.proj"))
    ran = ckptool("upgrade", "old.pth", "-o", "new.pth", *module, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert "not written: strict loading fails: 2 missing (proj.bias, proj.weight)" in line
    assert line.endswith(
        ": the state of the module changed since 0001_first, and no revision covers that: draft it "
        'with ckptool revision -m "what changed" --module net:Net'
    )
    planned = ckptool("upgrade", "old.pth", "--dry-run", *module, cwd=tmp_path)
    assert (planned.code, planned.out) == (2, ""), "a dry run says what the run would say"
    (plan_line,) = planned.err.splitlines()
    assert "old.pth: would not load strictly: 2 missing, 2 unexpected: the state of" in plan_line
    assert plan_line.split(": the state of")[1] == line.split(": the state of")[1]
    words = ("--rename", "linear.*=proj.*")
    drafted = ckptool("revision", "--message", "what changed", *module, *words, cwd=tmp_path)
    assert drafted.code == 0, drafted.err
    for output in (("--dry-run",), ("-o", "new.pth")):
        assert ckptool("upgrade", "old.pth", *output, *module, cwd=tmp_path).code == 0
