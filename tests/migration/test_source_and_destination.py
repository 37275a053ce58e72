"""A source or a destination that cannot be meant so: one line that says what to name instead."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ckptool
from ckptool.errors import ReadError, UsageError
from ckptool.formats import open_checkpoint


@pytest.fixture
def source(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_a_folder_is_no_file(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"out: is a folder: .* for example model\.safetensors$"):
        ckptool.migrate(source, tmp_path / "out")


def test_a_checkpoint_is_not_written_to_standard_output(source):
    with pytest.raises(
        UsageError, match=r"^-o -: a checkpoint cannot be written to standard output"
    ):
        ckptool.migrate(source, "-")


def test_a_pattern_that_the_shell_left_alone_is_told(tmp_path):
    with pytest.raises(
        ReadError, match="patterns are expanded by the shell, and this one matched nothing"
    ):
        open_checkpoint(tmp_path / "*.pth")


def test_a_save_that_raised_is_told_from_a_file_of_another_program(tmp_path):
    with pytest.raises(RuntimeError, match="parametrized"):
        torch.save(parametrizations.weight_norm(nn.Linear(2, 2)), tmp_path / "whole.pth")
    with pytest.raises(ReadError, match=r"it raised, .* save its state_dict\(\) instead"):
        open_checkpoint(tmp_path / "whole.pth")


def test_a_second_state_that_matches_as_well_is_named(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({"model": state, "ema": {k: v + 1 for k, v in state.items()}}, tmp_path / "t.pth")
    module = nn.Linear(2, 2)
    report = ckptool.migrate(tmp_path / "t.pth", module=module, dry_run=True, drop_extra=True)
    taken, other = report.at, {"model": "ema", "ema": "model"}[report.at]
    assert f"`{other}` matches as well as `{taken}`: --at takes it instead" in report.notes
    report = ckptool.migrate(
        tmp_path / "t.pth", module=module, at="model", dry_run=True, drop_extra=True
    )
    assert report.at == "model"
    assert not any("matches as well" in note for note in report.notes)
