"""What a plan does not decide: a question in a line each, and a draft that a person completes."""

import re

import pytest
import torch
from migration import models

import ckptool
from ckptool.errors import PlanError, UsageError, WriteError
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.plan_file import parse_plan

NEW = "migration.models:New"
INPUTS = ("int64[2,3]<5",)


@pytest.fixture
def whole(tmp_path):
    """A trained module, pickled whole: its attributes are not those of a fresh one."""
    torch.manual_seed(5)
    old = models.Old()
    old.mean += torch.arange(4.0)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.save(old, tmp_path / "whole.pth")
    return tmp_path / "whole.pth"


def migrate(whole, name="new.pth", **options):
    return ckptool.migrate(whole, whole.with_name(name), module=NEW, **options)


def answered(text):
    """Take the comments off the steps, as somebody would who has looked at each."""
    return re.sub(r"(?m)^# (?=\[\[ops|\w+ = |    |\])", "", text)


def test_a_refusal_is_a_line_for_each_question(whole):
    with pytest.raises(PlanError) as error:
        migrate(whole)
    first, *questions, hint = error.value.lines
    assert first == f"{whole}: not migrated: {len(questions)} open questions"
    assert "`qkv.weight` is `q.weight`, `k.weight`, `v.weight` in one" in str(error.value)
    renames = [line for line in questions if "--rename" in line]
    assert renames[0].startswith("is `ln*.*` in the file `norm*.*` in the module? 4 tensors")
    assert renames[0].endswith(": --rename 'ln*.*=norm*.*'")
    assert "--save-plan FILE writes the plan so far" in hint


def test_a_refused_plan_is_saved_with_what_is_open_in_comments(whole, tmp_path):
    plan = tmp_path / "the plan.toml"
    with pytest.raises(PlanError, match=r"then run with --plan '.*the plan.toml'$"):
        migrate(whole, save_plan=plan, dry_run=True)
    derived = parse_plan(plan.read_text()).ops
    assert [(op.key, op.source) for op in derived if isinstance(op, InjectTensor)] == [
        ("mean", "attribute"),
        ("adapters.0.weight", "attribute"),
        ("adapters.0.bias", "attribute"),
    ]
    assert '# op = "concat"' in plan.read_text()
    with pytest.raises(WriteError, match=r"already exists: .*replace it with --force"):
        migrate(whole, save_plan=plan, dry_run=True)


def test_the_completed_draft_computes_what_the_old_module_did(whole, tmp_path):
    plan = tmp_path / "plan.toml"
    with pytest.raises(PlanError):
        migrate(whole, save_plan=plan)
    plan.write_text(answered(plan.read_text()))
    proof = {"inputs": INPUTS, "old_module": "migration.models:Old", "device": "cpu"}
    report = migrate(whole, plan=plan, tolerance=1e-5, **proof)
    assert report.verdict == "migrated: loads strictly"
    (forward,) = [one for one in report.checks if one.name == "forward"]
    assert forward.result == "passed"
    old, new = torch.load(whole, weights_only=False).eval(), models.New().eval()
    new.load_state_dict(torch.load(tmp_path / "new.pth"))
    ids = torch.tensor([[0, 1, 2]])
    assert torch.allclose(old(ids), new(ids), rtol=1e-5, atol=1e-5)


def test_layers_of_one_kind_are_one_question(tmp_path):
    state = {f"layers.{n}.w": torch.ones(2) for n in range(30)}
    torch.save(state | {"norm.0.w": torch.ones(3), "norm.1.v": torch.ones(4)}, tmp_path / "a.pth")
    with pytest.raises(PlanError) as error:
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", module="torch.nn:Identity")
    question = error.value.lines[1]
    assert question.startswith(
        "`*` (32 tensors): in the file but not in the module (CK204): --drop"
    )


def test_a_plan_that_leaves_keys_open_names_them(whole, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text("schema = 1\n")
    with pytest.raises(
        ckptool.CkptoolError,
        match=r"strict loading fails: .* missing \(adapters.0.bias, adapters.0.weight, mean",
    ):
        migrate(whole, plan=plan)
    assert not (tmp_path / "new.pth").exists()


def test_a_step_that_fails_names_the_file_and_what_was_meant(tmp_path):
    torch.save({"module.fc.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    plan = tmp_path / "plan.toml"
    for key, meant in (("fc.weight", 'prefix = "module."'), ("module.fc.wieght", "did you mean")):
        plan.write_text(f'[[ops]]\nop = "rename"\nkey = "{key}"\nto = "b"\n')
        with pytest.raises(PlanError, match=f"^{plan}: step 1: rename .*{re.escape(meant)}"):
            ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.pth", plan=plan)


def test_a_plan_and_single_steps_do_not_go_together(whole, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text("schema = 1\n")
    with pytest.raises(
        UsageError,
        match="--plan is the complete plan: add what --inject, --drop, --rename and "
        "--accept-renames ask for to it, as steps",
    ):
        migrate(whole, plan=plan, drop=("q.weight",))
