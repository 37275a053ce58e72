"""A list of which one item has no plain form: refused in one line that names the source."""

from pathlib import Path

import numpy as np
import pytest
import torch
from files import save

import ckptool
from ckptool.errors import PlanError


@pytest.mark.parametrize("item", [np.array(["text"]), range(3)])
def test_a_list_with_an_item_that_has_no_plain_form(item: object, tmp_path: Path) -> None:
    path = save(tmp_path / "list.pt", [{"w": torch.ones(2)}, item])
    with pytest.raises(PlanError, match="a part of list of 2") as error:
        ckptool.convert(path, tmp_path / "new.pth")
    assert str(error.value).startswith(f"{path}: ")
    assert [file.name for file in tmp_path.iterdir()] == ["list.pt"]


def test_its_state_is_written_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "list.pt", [{"w": torch.ones(2)}, range(3)])
    ckptool.convert(path, tmp_path / "new.pth", at="0")
    assert torch.equal(torch.load(tmp_path / "new.pth")["w"], torch.ones(2))
