"""A member of an enum in a checkpoint that Python 3.11.0 to 3.11.3 saved."""

import enum

import pytest
import torch
from formats.early_pickler import early_pickle

from ckptool import api


class Color(enum.Enum):
    RED = 1


def test_the_fix_of_a_member_of_an_enum_is_to_save_its_name(tmp_path):
    path = tmp_path / "model.pth"
    checkpoint = {"w": torch.ones(2), "color": Color.RED}
    torch.save(checkpoint, path, pickle_module=early_pickle)
    with pytest.raises(Exception, match="getattr"):
        torch.load(path)
    finding = next(f for f in api.inspect([path]).findings if "getattr" in f.message)
    assert "looks up `RED` of the class" in finding.message
    line = finding.fix.partition("torch.save: ")[2]
    exec(line, {"checkpoint": checkpoint})
    torch.save(checkpoint, path, pickle_module=early_pickle)
    assert torch.load(path)["color"] == "RED"
    assert not api.inspect([path]).findings
