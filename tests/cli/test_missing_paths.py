"""Every option that takes a path, given one that does not exist, a folder, or a closed file.

The options are read from click's command tree, so that a new one is tried without being named.
"""

import shutil
from pathlib import Path

import click
import pytest
import torch
from command_runs import run_in_process
from command_words import CONTEXT, LEAST, LINEAR

from ckptool.cli import COMMANDS, main
from ckptool.cli.options.param_types import CHECKPOINT_PATH, OUTPUT_PATH

MODULE = ("-m", *LINEAR)
INPUTS = ("--input", "float32[1,2]")
MIGRATE = ("{input}", *MODULE, "-o", "{folder}/out.pth")
MOVE = ("{input}", "--chain", "{chain}", "-m", *LINEAR)
FORWARD = {
    "init": (),
    "migrate": (*MIGRATE, "--force"),
    "convert": ("{input}", "--dry-run"),
    "verify": ("{input}", *MODULE, *INPUTS),
    "upgrade": (*MOVE, "-o", "{folder}/out.pth"),
    "downgrade": (*MOVE, "-o", "{folder}/out.pth", "--to", "base"),
}
SPECIAL = {
    ("diff", "--base"): ("{input}", *MODULE),
    ("migrate", "-o"): ("{input}", *MODULE),
    ("migrate", "--merge-adapter"): ("{input}", "-o", "{folder}/out"),
    ("convert", "-o"): ("{input}",),
    ("upgrade", "-o"): MOVE,
    ("downgrade", "-o"): (*MOVE, "--to", "base"),
    ("gate", "--plan"): ("{input}", *MODULE, "--fixtures", "{other}"),
    ("explain", "-o"): ('Missing key(s) in state_dict: "mask".',),
    ("revision", "-o"): ("-m", "y", "--python", "--chain", "{chain}", "--module", *LINEAR),
    ("lock", "--golden"): ("{input}", *MODULE, *INPUTS),
}
"""Words with which a command comes to the option, where those of LEAST do not lead there."""
TEXTS = {
    ("migrate", "--inject"): "weight=file:{path}#weight",
    ("explain", "--checkpoint"): "{path}",
    ("gate", "--against"): "{path}",
    ("gate", "--fixtures"): "{path}",
}
"""Options whose text contains a path."""
MADE = {("revision", "--chain")}
"""Options that make what they name."""
UNREAD = {("explain", "--checkpoint"), ("migrate", "--inject")}
"""Options whose file is not read, or only where the command has found something before."""


def _list_path_options(*, of_outputs: bool) -> list[tuple[str, str]]:
    found = []
    for name in sorted(COMMANDS.keys() - {"run", "rule"}):
        for parameter in main.get_command(CONTEXT, name).params:
            option = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.name
            is_path = isinstance(parameter.type, click.Path) or parameter.type is CHECKPOINT_PATH
            is_output = parameter.type is OUTPUT_PATH and option != "--baseline"
            is_path = is_path or (name, option) in TEXTS
            if is_path and is_output == of_outputs and (name, option) not in MADE | UNREAD:
                found.append((name, option))
    return found


READ = _list_path_options(of_outputs=False)
WRITTEN = _list_path_options(of_outputs=True)


@pytest.fixture(scope="session")
def made_chain(tmp_path_factory) -> Path:
    """A chain of one revision; the command imports torch in a process for it."""
    chain = tmp_path_factory.mktemp("chain") / "chain"
    ran = run_in_process("revision", "-m", "x", "--chain", chain, "--module", *LINEAR)
    assert ran.code == 0, ran.err
    return chain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = torch.nn.Linear(2, 3).state_dict()
    for name in ("input.pth", "other.pth"):
        torch.save(state, tmp_path / name)
    return tmp_path


def _run(made_chain: Path, folder: Path, name: str, option: str, path: Path):
    chain = folder / "chain"
    if "{chain}" in (words := SPECIAL.get((name, option), FORWARD.get(name, LEAST.get(name)))):
        shutil.copytree(made_chain, chain)
    places = {
        "input": folder / "input.pth", "other": folder / "other.pth",
        "chain": chain, "folder": folder,
    }  # fmt: skip
    given = [word.format(**places) for word in words]
    if option.startswith("-"):
        given += [option, TEXTS.get((name, option), "{path}").format(path=path)]
    elif option == "new":
        given[1] = str(path)
    elif name in {"audit", "init"}:
        given = [str(path)]
    else:
        given[0] = str(path)
    return run_in_process(name, *given, cwd=folder)


def _require_one_line(ran, path: Path, folder: Path) -> str:
    lines = [line for line in ran.err.splitlines() if "the old spelling" not in line]
    assert ran.code == 2, (ran.out, ran.err)
    assert len(lines) == 1, ran.err
    assert str(path) in lines[0]
    for words in ("Traceback", "No such file or directory", "Is a directory", "Errno"):
        assert words not in lines[0]
    assert not list(folder.rglob(".ckptool-*"))
    return lines[0]


@pytest.mark.parametrize(("name", "option"), READ, ids=[" ".join(words) for words in READ])
def test_a_missing_file_is_one_line_with_its_path(name, option, folder, made_chain) -> None:
    path = folder / "name.pth"
    line = _require_one_line(_run(made_chain, folder, name, option, path), path, folder)
    if option not in {"--chain", "--fixtures"}:
        assert "no such file" in line or "no such folder" in line


@pytest.mark.parametrize(("name", "option"), WRITTEN, ids=[" ".join(words) for words in WRITTEN])
def test_an_output_in_a_missing_folder_is_one_line(name, option, folder, made_chain) -> None:
    path = folder / "nowhere" / "name.pth"
    ran = _run(made_chain, folder, name, option, path)
    line = _require_one_line(ran, path, folder)
    assert f"the folder {path.parent} does not exist: create it first" in line
    assert not (folder / "out.pth").exists()
