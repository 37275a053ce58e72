"""Equality with a pickled module: its attributes are part of what it computed."""

import pytest
import torch
from migration import models

from ckptool import api

INPUTS = ("int64[2,3]<5",)
OLD = "migration.models:Old"


@pytest.fixture
def files(tmp_path):
    """whole.pth and state.pth of one module with attributes that training changed."""
    torch.manual_seed(5)
    old = models.Old()
    old.mean += torch.arange(4.0)
    torch.save(old, tmp_path / "whole.pth")
    torch.save(old.state_dict(), tmp_path / "state.pth")
    new = models.New()
    state = {k: v for k, v in old.state_dict().items() if k.partition(".")[0] in {"embed", "head"}}
    state |= {
        f"norm{n}.{p}": getattr(getattr(old, f"ln{n}"), p)
        for n in (1, 2)
        for p in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        state[f"qkv.{part}"] = torch.cat([getattr(one, part) for one in (old.q, old.k, old.v)])
        state[f"adapters.0.{part}"] = getattr(old.adapters[0], part)
    new.load_state_dict(state | {"mean": old.mean})
    torch.save(new.state_dict(), tmp_path / "new.pth")
    return tmp_path


def equality(files, against, tolerance=1e-5):
    report = api.verify(
        files / "new.pth",
        module="migration.models:New",
        old=files / against,
        old_module=OLD,
        inputs=INPUTS,
        device="cpu",
        tolerance=tolerance,
    )
    (found,) = [one for one in report.levels if one.level == "equality"]
    return found


def test_a_pickled_module_computes_with_its_own_attributes(files):
    found = equality(files, "whole.pth")
    assert found.status == "passed"
    assert "were restored: `adapters[0].weight`" in " ".join(found.details)


def test_a_state_dict_that_lost_them_says_so(files):
    found = equality(files, "state.pth")
    assert found.status == "failed"
    assert "the old file has no value of" in found.reason
    assert "`mean`" in found.reason


def test_rounding_is_told_from_a_difference(files):
    found = equality(files, "whole.pth", tolerance=None)
    if found.status == "failed":  # One product of three may round as three do: by the processor.
        assert "--tolerance accepts it" in found.reason
    assert equality(files, "state.pth", tolerance=1e-5).status == "failed"
