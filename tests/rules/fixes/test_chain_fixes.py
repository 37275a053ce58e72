"""The commands in the fixes of CK87x are pasted and run, and the finding goes."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT
from rules import cases_chain

import ckptool

pytestmark = pytest.mark.process

MODULE = "rules.cases_chain:ChainNet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def paste(folder, run_command):
    """Run a command line of a fix in a project whose module is ChainNet2."""
    configure(folder, 2)

    def run(line, *words):
        for part in line.split(" && "):
            name, *arguments = shlex.split(part)
            if name == "ckptool":
                command, *rest = arguments
                is_current = command in {"history", "current"}
                place = () if is_current else ("-I", ROOT / "tests")
                ran = run_command(command, *rest, *words, *place, cwd=folder)
            else:
                assert (name, len(arguments)) == ("mv", 2)
                Path(arguments[0]).rename(arguments[1])
        return ran

    return run


def configure(folder, number):
    text = f'[[models]]\npath = "*"\nmodule = "{MODULE}{number}"\ninputs = ["float32[1,2]"]\n'
    (folder / "ckptool.toml").write_text(text)


def read_commands(report, code):
    """Return what stands between backquotes in the fix of a finding."""
    fix = next(finding.fix for finding in report.findings if finding.code == code)
    return re.findall("`(.*?)`", fix)


def read_command(report, code):
    (command,) = read_commands(report, code)
    return command


def list_codes(report):
    return {finding.code for finding in report.findings}


def list_chain_codes(path, number=2):
    report = ckptool.gate(path, config=cases_chain.configure(path.parent, number))
    return {code for code in list_codes(report) if code.startswith("CK87")}


def test_an_old_file_is_upgraded(folder, paste):
    report = cases_chain.an_old_file_in_a_release(folder)
    assert paste(read_command(report, "CK870")).code == 0
    assert not list_chain_codes(folder / "old-upgraded.pth")


def test_a_file_of_newer_code_is_downgraded_there(folder, paste):
    """The command is run where the newer code is; its result is at the head of the older code."""
    config = cases_chain.build_chain(folder)
    older = (folder / "ckpt_migrations").rename(folder / "older")
    shutil.copytree(older, folder / "ckpt_migrations")
    ckptool.revision("a gain", config=cases_chain.configure(folder, 3))
    newer_config = cases_chain.configure(folder, 3)
    ckptool.upgrade(cases_chain.save_old(folder), folder / "new.pth", config=newer_config)
    newer = (folder / "ckpt_migrations").rename(folder / "newer")
    older.rename(folder / "ckpt_migrations")
    report = ckptool.gate(folder / "new.pth", config=config)
    command = read_command(report, "CK871")
    (folder / "ckpt_migrations").rename(older)
    newer.rename(folder / "ckpt_migrations")
    configure(folder, 3)
    assert paste(command).code == 0
    (folder / "ckpt_migrations").rename(newer)
    older.rename(folder / "ckpt_migrations")
    assert not list_chain_codes(folder / "new-downgraded.pth")


def test_a_file_with_a_foreign_stamp_gets_that_of_this_chain(folder, paste):
    report = cases_chain.a_stamp_of_another_project(folder)
    assert paste(read_command(report, "CK872")).code == 0
    assert not list_chain_codes(folder / "new-upgraded.safetensors")


@pytest.mark.parametrize(
    ("case", "code", "result"),
    [
        ("a_key_that_no_revision_records", "CK873", "new-upgraded.pth"),
        ("a_stamp_that_was_kept_with_another_key", "CK874", "new-upgraded.safetensors"),
    ],
)
def test_a_file_with_another_key_is_migrated(folder, paste, case, code, result):
    report = getattr(cases_chain, case)(folder)
    command = read_command(report, code)
    asked = paste(command)
    assert (asked.code, "--drop gain" in asked.err) == (2, True)
    assert paste(command, "--drop", "gain").code == 0
    assert not list_chain_codes(folder / result)


def test_a_file_of_a_module_that_changed_is_recorded(folder, paste):
    """The module has the key as well: it is the chain that lacks a revision."""
    cases_chain.build_chain(folder)
    import torch

    torch.save(cases_chain.ChainNet3().state_dict(), folder / "new.pth")
    report = ckptool.gate(folder / "new.pth", config=cases_chain.configure(folder, 3))
    command = read_command(report, "CK873")
    assert command == read_command(report, "CK876")
    configure(folder, 3)
    assert paste(command).code == 0
    assert not list_chain_codes(folder / "new.pth", 3)


def test_a_stamp_of_a_later_revision_is_replaced(folder, paste):
    """Its keys are those of 0001 again, and the stamp of 0002 was kept."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    config = cases_chain.build_chain(folder)
    path = cases_chain.upgrade(folder, config)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    old = {key.replace("body", "inp"): value for key, value in load_file(path).items()}
    save_file(old, path, metadata)
    command = read_command(ckptool.gate(path, config=config), "CK874")
    assert "--from 0001_the_first_one" in command
    assert paste(command).code == 0
    assert not list_chain_codes(folder / "new-upgraded.safetensors")


def test_an_ambiguous_file_gets_a_stamp(folder, paste):
    report = cases_chain.two_revisions_with_the_same_keys(folder)
    assert paste(read_command(report, "CK875")).code == 0
    assert not list_chain_codes(folder / "new-upgraded.pth")


def test_an_unrecorded_change_is_drafted(folder, paste):
    report = cases_chain.a_state_that_no_revision_records(folder)
    configure(folder, 3)
    assert paste(read_command(report, "CK876")).code == 0
    assert not list_codes(ckptool.check(config=cases_chain.configure(folder, 3)))


def test_the_step_that_a_fixture_fails_at_is_shown_and_corrected(folder, paste):
    report = cases_chain.a_step_that_matches_no_key(folder)
    show, check = read_commands(report, "CK877")
    shown = paste(show)
    assert (shown.code, "step 1: rename `input.*`" in shown.err) == (2, True)
    cases_chain.edit_head(folder, 'key = "input.*"', 'key = "inp.*"')
    assert paste(show).code == 0
    assert paste(check).code == 0


def test_outputs_that_are_meant_to_differ_are_removed(folder, paste):
    report = cases_chain.a_fixture_whose_outputs_are_others(folder)
    show, remove = read_commands(report, "CK878")
    shown = paste(show)
    assert (shown.code, "inp.*" in shown.out) == (0, True)
    program, path = shlex.split(remove)
    assert program == "rm"
    Path(path).unlink()
    assert paste("ckptool check").code == 0


def test_the_last_revision_is_drafted_again(folder, paste):
    report = cases_chain.a_step_more_than_the_recorded_state_has(folder)
    command = read_command(report, "CK879")
    assert paste(command, "--accept-renames").code == 0
    assert (folder / "ckpt_migrations" / "0002_inp_is_body.toml.old").exists()
    assert paste("ckptool check").code == 0


@pytest.mark.process
def test_earlier_steps_are_looked_up_in_git(folder):
    """0002 is not the last one: its earlier steps are in the history of the repository."""
    cases_chain.build_chain(folder)
    ckptool.revision("a gain", config=cases_chain.configure(folder, 3))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "chain")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    path = folder / "ckpt_migrations" / "0002_inp_is_body.toml"
    path.write_text(path.read_text().replace('key = "inp.*"', 'key = "input.*"'))
    report = ckptool.check(config=cases_chain.configure(folder, 3))
    command = read_command(report, "CK879")
    shown = subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    assert b'+key = "inp.*"' in shown.stdout
