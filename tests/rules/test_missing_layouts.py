"""What a file lacks and a migration cannot inject: the fix of a sparse or quantised tensor."""

import pytest
import torch
from torch import nn

import ckptool
from ckptool.errors import PlanError


class Layouts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.eye(2).to_sparse())
        self.register_buffer("adjacency", torch.eye(2).to_sparse())
        self.register_buffer("noise", torch.rand(2, 2).to_sparse())


MISSING = {"weight": "CK201", "adjacency": "CK203", "noise": "CK202"}


@pytest.fixture
def path(tmp_path):
    state_dict = Layouts().state_dict()
    torch.save(state_dict, tmp_path / "DONOR")
    torch.save({k: v for k, v in state_dict.items() if k not in MISSING}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_the_code_of_the_fixes_loads(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    module, state_dict = Layouts(), torch.load(path)
    findings = {f.key: f for f in ckptool.diff(path, module=module).findings if f.key in MISSING}
    assert {key: finding.code for key, finding in findings.items()} == MISSING
    for finding in findings.values():
        code = finding.fix[finding.fix.index("state_dict[") :]
        exec(code, {"module": module, "state_dict": state_dict, "torch": torch})
    module.load_state_dict(state_dict)


def test_a_question_proposes_no_injection_that_is_refused(path):
    with pytest.raises(PlanError) as error:
        ckptool.migrate(path, path.with_name("new.pth"), module=Layouts)
    assert "only dense tensors are injected" in str(error.value)
    assert "--inject" not in str(error.value)
