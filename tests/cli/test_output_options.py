"""--format, -o, -q and suffixes mean the same in every command; so does each option's name."""

import json
import subprocess
import sys
from itertools import product

import click
import pytest
import torch
from files import save
from paths import ROOT

from ckptool.cli import COMMANDS, main
from ckptool.cli.help_groups import GROUP_BY_PARAMETER
from ckptool.cli.outputs.output_targets import find_format
from ckptool.render import FORMATS

LINEAR = ("-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3")
RUNS = {
    "audit": LINEAR,
    "diff": ("a.pth", *LINEAR),
    "digest": ("a.pth",),
    "gate": ("a.pth", *LINEAR),
    "inspect": ("a.pth",),
    "lock": LINEAR,
    "migrate": ("a.pth", "--dry-run", *LINEAR),
    "verify": ("a.pth", *LINEAR, "--device", "cpu", "--input", "float32[1,2]"),
}
SUFFIXES = {".json": "json", ".md": "markdown", ".html": "html", ".sarif": "sarif", ".xml": "junit"}
BEGINNINGS = {
    "json": '{\n  "command"', "markdown": "### ", "html": "<!DOCTYPE", "sarif": '{\n  "$schema"',
    "junit": "<?xml",
}  # fmt: skip
TARGETS = {"lock": "new.lock.json", "migrate": "new.pth"}


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "a.pth", {"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    return tmp_path


def is_format(text, format_):
    return text.startswith(BEGINNINGS.get(format_, "")) and bool(text.strip())


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "format_", "q"), [*product(RUNS, FORMATS, [(), ("-q",)])])
def test_the_o_behind_a_format_is_that_report(run_command, folder, name, format_, q):
    plain = run_command(name, *RUNS[name], "--format", format_, "-o", "full", cwd=folder)
    full = (folder / "full").read_text()
    words = ("--format", format_, "-o", "x", *q)
    ran = run_command(name, *RUNS[name], *words, "--force", cwd=folder)
    assert (ran.code, ran.out) == (plain.code, "")
    text = (folder / "x").read_text()
    assert is_format(text, format_)
    if name != "lock":  # the second run says that nothing has changed
        assert text == full
    else:
        assert (folder / "ckpt.lock.json").read_text().startswith('{\n  "ckptool-lock"')


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("name", "suffix"), [*product([n for n in RUNS if n not in TARGETS], SUFFIXES)]
)
def test_without_a_format_the_suffix_says_it(run_command, folder, name, suffix):
    run_command(name, *RUNS[name], "-o", f"x{suffix}", cwd=folder)
    assert is_format((folder / f"x{suffix}").read_text(), SUFFIXES[suffix])
    # A format that is given wins, in both orders.
    run_command(name, *RUNS[name], "--format", "junit", "-o", f"y{suffix}", cwd=folder)
    run_command(name, *RUNS[name], "-o", f"z{suffix}", "--format", "junit", cwd=folder)
    assert is_format((folder / f"y{suffix}").read_text(), "junit")
    assert (folder / f"y{suffix}").read_text() == (folder / f"z{suffix}").read_text()


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "before"), [*product(TARGETS, [True, False])])
def test_a_file_and_a_report_are_written_side_by_side(run_command, folder, name, before):
    run = [word for word in RUNS[name] if word != "--dry-run"]
    own, report = ("-o", TARGETS[name]), ("--format", "json", "-o", "r.json")
    words = (*own, *report) if before else (*report, *own)
    ran = run_command(name, *run, *words, cwd=folder)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert json.loads((folder / "r.json").read_text())["command"] == name
    assert (folder / TARGETS[name]).exists()
    assert not (folder / "ckpt.lock.json").exists()


@pytest.mark.parametrize("name", TARGETS)
def test_the_old_order_is_understood_with_a_notice(run_command, folder, name):
    run = [word for word in RUNS[name] if word != "--dry-run"]
    ran = run_command(name, *run, "--format", "json", "-o", TARGETS[name], cwd=folder)
    assert (ran.code, json.loads(ran.out)["command"]) == (0, name)
    assert (folder / TARGETS[name]).exists()
    assert "the old spelling goes with the next release" in ran.err


def test_two_targets_are_an_error(run_command, folder):
    ran = run_command("lock", *LINEAR, "-o", "a.lock.json", "-o", "b.lock.json", cwd=folder)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("name", [n for n in RUNS if n not in {"audit", "inspect"}])
def test_a_place_that_names_nothing_could_not_be_checked(run_command, folder, name):
    run = [word for word in RUNS[name] if word != "--dry-run"]
    if name == "lock":
        run = ["a.pth"]
    if name == "migrate":
        run += ["-o", "new.pth"]
    ran = run_command(name, *run, "--at", "nowhere", cwd=folder)
    assert ran.code == 2
    assert "nowhere" in ran.err
    assert not (folder / "new.pth").exists()


@pytest.mark.process
@pytest.mark.parametrize("words", [("rule",), ("--help",), ("gate", "--help")])
def test_a_closed_pipe_is_no_finding(words):
    """The first line of what fills a pipe; the reader then closes it."""
    with subprocess.Popen(
        [sys.executable, "-m", "ckptool", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) in {0, 141}


CONTEXT = click.Context(main)
OPTIONS = [
    (name, parameter)
    for name in COMMANDS
    for parameter in main.get_command(CONTEXT, name).params
    if isinstance(parameter, click.Option) and not parameter.hidden
]
SAME_NAME = {
    "--output": "a report, or the file of the command itself",
    "--force": "replaces what -o names",
    "--golden": "written by lock, replayed by gate",
    "--plan": "carried out by migrate, offered to old checkpoints by gate",
    "--against": "a reference: of a release in gate, of a digest in digest",
    "--tolerance": "a number; in lock, for one release, DEVICE=NUMBER as well",
    "--to": "what it becomes: a container in migrate, a revision in upgrade",
    "--from": "where it comes from: a checkpoint in migrate, a revision in upgrade",
    "--values": "off by default where it costs a look at every byte",
}
"""Options whose kind of value differs between commands, and what they have in common."""


@pytest.mark.parametrize("option", sorted({o.opts[-1] for _, o in OPTIONS} - SAME_NAME.keys()))
def test_an_option_takes_the_same_in_every_command(option):
    kinds = {(type(o.type).__name__, o.is_flag) for _, o in OPTIONS if option in o.opts}
    assert len(kinds) == 1, kinds


def test_every_option_is_in_a_group_of_the_help():
    grouped = [o for name, o in OPTIONS if name not in {"rule", "init"}]
    assert {o.name for o in grouped} - GROUP_BY_PARAMETER.keys() == set()


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.json", "json"), ("A.JSON", "json"), ("a.sarif.json", "sarif"), ("a.htm", "html"),
     ("a.pth", ""), ("json", ""), ("a.txt", "table")],
)  # fmt: skip
def test_formats_by_suffix(name, format_):
    from pathlib import Path

    assert find_format(Path(name)) == format_


OLD_SPELLINGS = [
    ("verify", ("a.pth", *LINEAR, "--input", "float32[1,2]"), "--against", "--old", "a.pth"),
    ("digest", ("a.pth",), "--check", "--against", "d.json"),
]


@pytest.mark.parametrize(("name", "words", "old", "new", "value"), OLD_SPELLINGS)
def test_an_old_spelling_does_the_same_with_a_notice(
    run_command, folder, name, words, old, new, value
):
    run_command("digest", "a.pth", "--format", "json", "-o", "d.json", cwd=folder)
    ran_old = run_command(name, *words, old, value, cwd=folder)
    ran_new = run_command(name, *words, new, value, cwd=folder)
    assert (ran_old.code, ran_old.out) == (ran_new.code, ran_new.out)
    assert f"`{old}` is written `{new}` now" in ran_old.err
    assert ran_new.err == ""
