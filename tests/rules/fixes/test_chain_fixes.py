"""The commands in the fixes of CK87x are run, and the finding goes."""

import re
import shlex

import pytest
from rules import cases_chain

import ckptool


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_words(report, code):
    """Return the words of the command in the fix of a finding, without "ckptool"."""
    fix = next(finding.fix for finding in report.findings if finding.code == code)
    return shlex.split(re.search("`ckptool (.*?)`", fix)[1])


def list_codes(report):
    return {finding.code for finding in report.findings}


def test_an_old_file_is_upgraded(folder):
    report = cases_chain.an_old_file_in_a_release(folder)
    command, source, option, target = read_words(report, "CK870")
    assert (command, option) == ("upgrade", "-o")
    config = cases_chain.configure(folder, 2)
    ckptool.upgrade(source, target, config=config)
    assert "CK870" not in list_codes(ckptool.gate(target, config=config))


def test_an_ambiguous_file_gets_a_stamp(folder):
    report = cases_chain.two_revisions_with_the_same_keys(folder)
    assert read_words(report, "CK875") == ["upgrade", "PATH", "--from", "REV", "-o", "OUT"]
    config = cases_chain.configure(folder, 2)
    ckptool.upgrade(folder / "new.pth", folder / "out.pth", from_="0003", config=config)
    assert not list_codes(ckptool.gate(folder / "out.pth", config=config))


def test_an_unrecorded_change_is_drafted(folder):
    report = cases_chain.a_state_that_no_revision_records(folder)
    command, option, message = read_words(report, "CK876")
    assert (command, option) == ("revision", "-m")
    config = cases_chain.configure(folder, 3)
    ckptool.revision(message, config=config)
    assert not list_codes(ckptool.check(config=config))
