"""What a command writes: never over what it reads, and over nothing foreign without --force.

The options are read from click's command tree, so that a new one is tried without being named.
"""

import json
import os
from pathlib import Path

import click
import pytest
import torch
from command_words import CONTEXT, LEAST, LINEAR
from files import save

import ckptool
from ckptool.cli import COMMANDS, REVISION_COMMANDS, main
from ckptool.cli.options.param_types import OUTPUT_PATH

WRITES = [
    (name, option)
    # init reads a folder, and nobody knows what the command of run reads.
    for name in sorted(COMMANDS.keys() - {"init", "run"})
    for parameter in main.get_command(CONTEXT, name).params
    if parameter.type is OUTPUT_PATH
    for option in parameter.opts[:1]
]
NAMES = ("itself", "symlink", "hard link", "symlinked folder", "dotted")


def make_name(kind: str, path: Path) -> Path:
    """Return another name of the file."""
    other = path.with_name("other-name.pth")
    match kind:
        case "symlink":
            other.symlink_to(path)
        case "hard link":
            other.hardlink_to(path)
        case "symlinked folder":
            (path.parent.parent / "link").symlink_to(path.parent)
            other = path.parent.parent / "link" / path.name
        case "dotted":
            other = path.parent / "." / ".." / path.parent.name / path.name
        case _:
            return path
    return other


def test_every_path_that_is_written_is_guarded() -> None:
    assert {name for name, _ in WRITES} >= COMMANDS.keys() - {"init", "rule", "run"}
    for name in COMMANDS:
        for parameter in main.get_command(CONTEXT, name).params:
            described = (getattr(parameter, "help", None) or "").lower()
            writes = any(word in described for word in ("write the", "write it", "record what"))
            is_path = isinstance(parameter.type, click.Path)
            assert not (writes and is_path and parameter.type is not OUTPUT_PATH), parameter


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("name", "option"), WRITES)
def test_an_input_is_never_replaced(name, option, kind, force, run_command, tmp_path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    path = save(folder / "a.pth", torch.nn.Linear(2, 3).state_dict())
    words = [w.format(input=path, other=path, chain=path) for w in LEAST[name]]
    if name in {"audit", "fix"}:
        path.write_text("{}")
        words += ["--kwargs", str(path)]
    if name == "migrate" and option != "-o":
        words += ["-o", str(tmp_path / "new.pth")]
    content = path.read_bytes()
    ran = run_command(name, *words, option, make_name(kind, path), *(["--force"] if force else []))
    assert path.read_bytes() == content, ran.err
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert "is an input of this command" in ran.err


@pytest.mark.parametrize(("name", "option"), WRITES)
def test_a_foreign_file_is_replaced_only_by_force(name, option, run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    if name == "merge":
        (tmp_path / "part.json").write_text(
            run_command("diff", path, path, "--shard", "1/1", "--format", "json").out
        )
    if name == "explain":
        path.write_text("RuntimeError: PytorchStreamReader failed reading zip archive\n")
    source = tmp_path / "part.json" if name == "merge" else path
    chain = tmp_path / "chain"
    if name in REVISION_COMMANDS - {"revision"}:
        run_command("revision", "-m", "x", "--chain", chain, "--module", *LINEAR)
    words = [w.format(input=source, other=path, chain=chain) for w in LEAST[name]]
    if name == "verify":
        words += ["--device", "cpu", "-k", "in_features=2", "-k", "out_features=3"]
        words += ["--input", "float32[1,2]"]
    if name == "lock" and option == "--golden":
        words += ["-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3"]
        words += ["--input", "float32[1,2]"]
    if option == "--baseline":
        words += ["--update-baseline"]
    if name == "migrate" and option != "-o":
        words += ["-o", str(tmp_path / "new.pth")]
    writes_files = {"convert", "migrate", "upgrade", "downgrade"}
    suffix = ".pth" if name in writes_files else ".json"
    target = tmp_path / f"notes{suffix}"
    target.write_text("precious\n")
    ran = run_command(name, *words, option, target)
    assert ran.code == 2, ran
    assert target.read_text() == "precious\n"
    # A file that is no baseline is never replaced, nor one in the place of a draft.
    if option == "--baseline" or (name, option) == ("revision", "--save-plan"):
        return
    forced = run_command(name, *words, option, target, "--force")
    assert forced.code in {0, 1}, forced
    assert target.read_bytes() != b"precious\n"
    if name not in writes_files and option == "-o":
        again = run_command(name, *words, option, target)
        assert again.code == forced.code, again


@pytest.mark.parametrize("form", ckptool.render.FORMATS)
def test_a_report_replaces_the_one_before(form, run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.full((2,), float("nan"))})
    target = tmp_path / "report"
    words = ("gate", path, "--format", form, "-o", target)
    first = run_command(*words)
    written = target.read_bytes()
    assert (first.code, run_command(*words).code) == (1, 1)
    assert target.read_bytes() == written
    assert run_command("inspect", path, "-o", target).code == 0


def test_a_folder_that_holds_an_input_is_not_replaced(run_command, tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(folder / "a.pth", {"w": torch.ones(2)})
    ran = run_command("migrate", path, "-o", folder, "--max-shard-size", "1GB", "--force")
    assert ran.code == 2
    assert "contains an input of this command and would be overwritten" in ran.err
    assert path.exists()


@pytest.mark.parametrize("words", [("-o", "-"), ("--format", "json", "-o", "-")])
def test_a_hyphen_is_standard_output(words, run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    plain = run_command("inspect", path, *words[:-2], cwd=tmp_path)
    assert run_command("inspect", path, *words, cwd=tmp_path) == plain
    assert not (tmp_path / "-").exists()


def test_a_hyphen_goes_with_the_format_before_it(run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    words = ("--format", "json", "-o", "-", "--format", "sarif", "-o", "s.json")
    ran = run_command("inspect", path, *words, cwd=tmp_path)
    assert json.loads(ran.out)["command"] == "inspect"
    assert "sarif" in (tmp_path / "s.json").read_text()


@pytest.mark.parametrize(
    "words",
    [("lock", "{}", "-o", "-"), ("migrate", "{}", "-o", "-"), ("gate", "{}", "--baseline", "-")],
)
def test_what_does_not_go_to_standard_output_says_so(words, run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    ran = run_command(*(word.format(path) for word in words), cwd=tmp_path)
    assert ran.code == 2
    assert "standard output" in ran.err
    assert not (tmp_path / "-").exists()


class TestRecord:
    """The record beside a migrated .pth is an output, too."""

    def test_a_foreign_file_is_kept(self, run_command, tmp_path) -> None:
        path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
        record = tmp_path / "new.pth.ckptool.json"
        record.write_text("precious")
        ran = run_command("migrate", path, "-o", tmp_path / "new.pth")
        assert ran.code == 2
        assert "--no-provenance" in ran.err
        assert record.read_text() == "precious"
        assert not (tmp_path / "new.pth").exists()
        assert run_command("migrate", path, "-o", tmp_path / "new.pth", "--force").code == 0
        assert run_command("migrate", path, "-o", tmp_path / "new.pth").code == 2

    def test_an_old_record_is_replaced(self, run_command, tmp_path) -> None:
        records = []
        for value in (torch.ones(2), torch.zeros(2)):
            path = save(tmp_path / "a.pth", {"w": value})
            assert run_command("migrate", path, "-o", tmp_path / "new.pth").code == 0
            records.append(json.loads((tmp_path / "new.pth.ckptool.json").read_text()))
            (tmp_path / "new.pth").unlink()
        assert records[0] != records[1]

    @pytest.mark.parametrize("force", [(), ("--force",)])
    def test_a_folder_is_kept(self, force, run_command, tmp_path) -> None:
        path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
        folder = tmp_path / "new.pth.ckptool.json" / "sub"
        folder.mkdir(parents=True)
        (folder / "file").write_text("precious")
        ran = run_command("migrate", path, "-o", tmp_path / "new.pth", *force)
        assert ran.code == 2
        assert (folder / "file").read_text() == "precious"

    @pytest.mark.parametrize("force", [(), ("--force",)])
    def test_the_source_is_kept(self, force, run_command, tmp_path) -> None:
        path = save(tmp_path / "d.pth.ckptool.json", {"w": torch.ones(2)})
        content = path.read_bytes()
        ran = run_command("migrate", path, "-o", tmp_path / "d.pth", *force)
        assert ran.code == 2
        assert path.read_bytes() == content


def test_a_source_whose_times_were_put_back_is_found(tmp_path, monkeypatch) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    other = save(tmp_path / "b.pth", {"w": torch.zeros(2)})
    before = path.stat()
    from ckptool.migration.write import file as written_files

    commit = written_files.commit_outputs

    def overwrite_and_commit(*outputs, check):
        with path.open("r+b") as file:
            file.write(other.read_bytes())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        commit(*outputs, check=check)

    monkeypatch.setattr(written_files, "commit_outputs", overwrite_and_commit)
    with pytest.raises(
        ckptool.errors.WriteError,
        match="changed while it was read: nothing was written, run the command again",
    ):
        ckptool.migrate(path, tmp_path / "new.safetensors")
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert not (tmp_path / "new.safetensors").exists()


NET = """
import torch
from layers import Layer
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer(2, 3)
"""
SOURCE_WRITES = [
    ("fix", "-m", "a_net:Net", "-o"),
    ("fix", "-m", "a_net.py:Net", "-o"),
    ("fix", "-o"),  # the module of the configuration
    ("fix", "--format", "json", "-o"),
    ("diff", "a.pth", "-o"),
    ("audit", "-m", "a_net:Net", "-o"),
    ("verify", "a.pth", "-m", "a_net:Net", "--format", "html", "-o"),
    ("lock", "a.pth", "-m", "a_net:Net", "-o"),
    ("lock", "a.pth", "-m", "a_net:Net", "--input", "float32[1,2]", "--golden"),
    ("migrate", "a.pth", "-m", "a_net:Net", "--emit-hook"),
    ("migrate", "a.pth", "-m", "a_net:Net", "-o", "n.pth", "--save-plan"),
    ("gate", "a.pth", "-m", "a_net:Net", "--update-baseline", "--baseline"),
    ("run", "-o"),
    ("init", "-o"),
    ("explain", "log.txt", "-o"),
]


@pytest.mark.parametrize("kind", ["itself", "symlink", "dotted"])
@pytest.mark.parametrize("words", SOURCE_WRITES, ids=" ".join)
def test_source_is_never_replaced(words, kind, run_command, tmp_path) -> None:
    """`fix -m net:Net -o net.py --force` wrote its report over the module."""
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "a_net.py").write_text(NET)
    (folder / "layers.py").write_text("from torch.nn import Linear as Layer\n")
    (folder / "log.txt").write_text("RuntimeError: x\n")
    (folder / "ckptool.toml").write_text('[[models]]\npath = "a.pth"\nmodule = "a_net:Net"\n')
    save(folder / "a.pth", {"layer.weight": torch.ones(3, 2), "layer.bias": torch.ones(3)})
    end = ("--", "true") if words[0] == "run" else ()
    targets = ["a_net.py"] if words[-1] == "--emit-hook" else ["a_net.py", "layers.py"]
    for target in targets:
        content = (folder / target).read_bytes()
        name = make_name(kind, folder / target)
        ran = run_command(*words, name, "--force", *end, cwd=folder)
        name.unlink() if kind == "symlink" else None
        assert (folder / target).read_bytes() == content, ran.err
        assert ran.code == 2, ran
        assert len(ran.err.splitlines()) == 1
        assert "would be overwritten" in ran.err


def test_a_link_of_another_suffix_is_the_module_as_well(run_command, tmp_path) -> None:
    (tmp_path / "a_net.py").write_text("import torch\nclass Net(torch.nn.Module): pass\n")
    (tmp_path / "report.json").hardlink_to(tmp_path / "a_net.py")
    ran = run_command("audit", "-m", "a_net:Net", "-o", "report.json", "--force", cwd=tmp_path)
    assert (ran.code, "is an input of this command" in ran.err) == (2, True), ran
    assert "class Net" in (tmp_path / "a_net.py").read_text()


def test_a_checkpoint_far_below_the_folder_is_an_input(run_command, tmp_path) -> None:
    """Only the files directly in a folder were inputs."""
    (tmp_path / "release" / "v1").mkdir(parents=True)
    path = save(tmp_path / "release" / "v1" / "a.pth", {"w": torch.ones(2)})
    content = path.read_bytes()
    ran = run_command("gate", tmp_path / "release", "-o", path, "--force", "--format", "json")
    assert (ran.code, path.read_bytes() == content) == (2, True), ran


@pytest.mark.parametrize("name", ["a.pth", "runs/b.pth"])
def test_init_does_not_replace_what_it_looks_at(name, run_command, tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    path = save(tmp_path / name, {"w": torch.ones(2)})
    content = path.read_bytes()
    ran = run_command("init", "--dry-run", "-o", path, "--force", cwd=tmp_path)
    assert (ran.code, path.read_bytes() == content) == (2, True), ran
