"""A tensor that repeats one number proves no rename: two of zeros may be anything."""

from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.reports.diff_files import DiffFilesReport

WEIGHT = torch.arange(12.0).reshape(3, 4)


def diff_states(tmp_path: Path, old: dict, new: dict) -> DiffFilesReport:
    torch.save({"w": WEIGHT, **old}, tmp_path / "old.pth")
    torch.save({"w": WEIGHT, **new}, tmp_path / "new.pth")
    return ckptool.diff(tmp_path / "old.pth", tmp_path / "new.pth")


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3), torch.ones(3), torch.zeros(()), torch.tensor(5), torch.zeros(4, 4)[:, 1]],
    ids=["zeros", "ones", "zero", "counter", "strided"],
)
def test_one_repeated_number_is_a_question(tmp_path, value):
    report = diff_states(tmp_path, {"enc.bias": value}, {"norm.shift": value})
    assert dict(report.renamed_keys) == {}
    assert {f.code for f in report.findings} == {"CK801", "CK802"}
    (removed,) = [f for f in report.findings if f.code == "CK801"]
    assert "was it renamed to `norm.shift`?" in removed.summary


def test_values_that_differ_among_themselves_are_a_proof(tmp_path):
    value = torch.tensor([0.0, 0.0, 1.0])
    report = diff_states(tmp_path, {"enc.bias": value}, {"norm.shift": value})
    assert dict(report.renamed_keys) == {"enc.bias": "norm.shift"}
    assert {f.code for f in report.findings} == {"CK801", "CK211"}


def test_zeros_follow_their_module(tmp_path):
    weight = torch.arange(6.0).reshape(3, 2)
    old = {"enc.weight": weight, "enc.bias": torch.zeros(3)}
    new = {"readout.weight": weight, "readout.bias": torch.zeros(3)}
    report = diff_states(tmp_path, old, new)
    assert dict(report.renamed_keys) == {
        "enc.weight": "readout.weight",
        "enc.bias": "readout.bias",
    }


def test_zeros_of_another_module_than_the_renamed_one_are_a_question(tmp_path):
    weight = torch.arange(6.0).reshape(3, 2)
    old = {"enc.weight": weight, "enc.bias": torch.zeros(3)}
    new = {"readout.weight": weight, "head.shift": torch.zeros(3)}
    report = diff_states(tmp_path, old, new)
    assert dict(report.renamed_keys) == {"enc.weight": "readout.weight"}
