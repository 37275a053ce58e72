"""Steps between two revisions are those of earlier code: today's module has no part in them."""

import pytest
import torch
from rules import cases_chain
from safetensors.torch import load_file
from torch import nn

import ckptool
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.migration.plan.plan_file import parse_plan

TRANSPOSE = '[[ops]]\nop = "transpose"\nkey = "weight"\ndims = [0, 1]\n'
X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


class Left(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(2, 2)


class Middle(nn.Module):
    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(2, 2)
        self.register_buffer("gate", torch.zeros(3))


class Right(nn.Module):
    def __init__(self):
        super().__init__()
        self.right = nn.Linear(2, 2)
        self.register_buffer("gate", torch.zeros(5))


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0).reshape(2, 2))


@pytest.fixture
def draft(tmp_path, monkeypatch):
    """Draft one revision after another in a new project."""
    monkeypatch.chdir(tmp_path)

    def add(module_class, **options):
        name = f"{__name__}:{module_class.__name__}"
        settings = Settings(models=(ModelEntry(path="*", module=name),))
        config = ProjectConfig(settings, tmp_path, tmp_path / "ckptool.toml")
        ckptool.revision(f"state of {module_class.__name__}", config=config, **options)
        return config

    return add


def test_a_key_that_two_revisions_rename(draft, tmp_path):
    """CK221 refused the first rename: today's module does not have the key in between."""
    old = Left()
    torch.save(old.state_dict(), "old.pth")
    draft(Left)
    draft(Middle, accept_renames=True, inject={"gate": "zeros"})
    config = draft(Right, accept_renames=True, drop=["gate"], inject={"gate": "zeros"})
    for target in ("new.pth", "new.safetensors"):
        ckptool.upgrade("old.pth", target, config=config)
        state = load_file(target) if target.endswith("s") else torch.load(target)
        module = Right()
        module.load_state_dict(state)
        assert torch.equal(module.right(X), old.left(X))
    live = Right()
    ckptool.load(live, "old.pth", revisions=tmp_path / "ckpt_migrations")
    assert torch.equal(live.right(X), old.left(X))
    report = ckptool.check(config=config)
    assert not report.findings
    assert [row.arrives for row in report.revisions] == ["passed"] * 3


def test_a_zero_buffer_has_the_shape_of_its_revision(draft, tmp_path):
    """`gate` was [3] at 0002; today's module has [5] there."""
    torch.save(Left().state_dict(), "old.pth")
    draft(Left)
    draft(Middle, accept_renames=True, inject={"gate": "zeros"})
    config = draft(Right, accept_renames=True, drop=["gate"], inject={"gate": "literal:1.5"})
    ckptool.upgrade("old.pth", "middle.pth", to="2", config=config)
    assert torch.equal(torch.load("middle.pth")["gate"], torch.zeros(3))
    ckptool.upgrade("middle.pth", "new.pth", config=config)
    assert torch.equal(torch.load("new.pth")["gate"], torch.full((5,), 1.5))
    assert tmp_path.exists()


def test_the_same_step_in_two_revisions_is_done_twice(draft, tmp_path):
    """A load took the second one for applied: the record of the file has an equal plan."""
    old = Square().state_dict()
    torch.save(old, "old.pth")
    draft(Square)
    draft(Square, plan=parse_plan(TRANSPOSE))
    config = draft(Square, plan=parse_plan(TRANSPOSE))
    ckptool.upgrade("old.pth", "once.safetensors", to="2", from_="1", config=config)
    assert torch.equal(load_file("once.safetensors")["weight"], old["weight"].T)
    ckptool.upgrade("once.safetensors", "twice.safetensors", config=config)
    live = Square()
    ckptool.load(live, "once.safetensors", revisions=tmp_path / "ckpt_migrations")
    assert torch.equal(load_file("twice.safetensors")["weight"], old["weight"])
    assert torch.equal(live.weight, old["weight"])


def test_check_of_a_module_that_changed_has_nothing_against_earlier_steps(tmp_path, monkeypatch):
    """CK879 was found on the step of 0002, whose key today's module does not have."""
    monkeypatch.chdir(tmp_path)
    cases_chain.build_chain(tmp_path)
    report = ckptool.check(config=cases_chain.configure(tmp_path, 1))
    assert {finding.code for finding in report.findings} == {"CK876"}
