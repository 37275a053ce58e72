"""Unrelated layers of one shape are never renamed into each other without being asked for."""

import json

import pytest
import torch
from migration import lookalikes

import ckptool
from ckptool.errors import PlanError
from ckptool.migration.plan.open_decisions import UndecidedError

INPUTS = ("float32[2,4]",)
SAME_KEYS = [
    name
    for name, (old, new) in lookalikes.PAIRS.items()
    if len(old) == len(new) and name != "two swapped"
]


@pytest.fixture(params=lookalikes.PAIRS)
def pair(request):
    return request.param


def save_old(tmp_path, name, suffix=".pth"):
    torch.manual_seed(3)
    module = lookalikes.make_old(name)
    path = tmp_path / f"old{suffix}"
    if suffix == ".pth":
        torch.save(module.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    return path, module


def migrate(path, module, **options):
    return ckptool.migrate(path, path.with_name("new.pth"), module=module, **options)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_lookalike_is_asked_about(tmp_path, pair, suffix):
    path, _ = save_old(tmp_path, pair, suffix)
    new = lookalikes.make_new(pair)
    with pytest.raises(RuntimeError, match="Missing key"):
        new.load_state_dict(lookalikes.make_old(pair).state_dict())
    for options in ({}, {"dry_run": True}, {"to": "safetensors"}):
        with pytest.raises(UndecidedError) as error:
            migrate(path, new, **options)
        keys = {*lookalikes.make_new(pair).state_dict()} - {"body.weight", "body.bias"}
        text = str(error.value)
        assert any(key in text or key.split(".")[0] in text for key in keys)
    assert list(tmp_path.iterdir()) == [path]


def test_the_outputs_of_the_old_module_refute_a_lookalike(tmp_path, pair):
    path, old = save_old(tmp_path, pair)
    new = lookalikes.make_new(pair)
    with pytest.raises(PlanError):
        migrate(path, new, inputs=INPUTS, old_module=old, device="cpu")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", SAME_KEYS)
def test_the_outputs_of_the_old_module_confirm_a_rename(tmp_path, name):
    path, old = save_old(tmp_path, name)
    new = lookalikes.make_renamed(name)
    if any(key.endswith("num_batches_tracked") for key in old.state_dict()):
        pytest.skip("forward does not depend on a counter of batches")
    report = migrate(path, new, inputs=INPUTS, old_module=old, device="cpu")
    assert report.verdict == "migrated: loads strictly"
    assert [check.result for check in report.checks] == ["passed"] * 3
    assert not any(step.assumption for step in report.steps)
    new.load_state_dict(torch.load(tmp_path / "new.pth"), strict=True)
    x = torch.randn(2, 4)
    assert torch.equal(new.eval()(x), old.eval()(x))


@pytest.mark.parametrize("name", SAME_KEYS)
def test_an_accepted_rename_is_recorded_as_assumed(tmp_path, name):
    path, _ = save_old(tmp_path, name)
    new = lookalikes.make_renamed(name)
    report = migrate(path, new, accept_renames=True)
    renames = [step for step in report.steps if step.op == "rename"]
    assert renames
    assert all(step.assumption for step in renames)
    record = json.loads((tmp_path / "new.pth.ckptool.json").read_text())
    assert all(step["assumption"] for step in record["plan"] if step["op"] == "rename")
    assert f"assumed: {renames[0].assumption}" in " ".join(ckptool.text(report).split())
    new.load_state_dict(torch.load(tmp_path / "new.pth"), strict=True)


def test_an_ambiguous_rename_is_not_accepted(tmp_path):
    for name in ("three for one", "one for three", "two swapped"):
        path, _ = save_old(tmp_path, name)
        with pytest.raises(UndecidedError):
            migrate(path, lookalikes.make_renamed(name), accept_renames=True)
        assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_that_forward_does_not_use_is_not_confirmed(tmp_path):
    class Old(torch.nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                self.add_module(name, torch.nn.Linear(4, 4))
            self.used = names[0]

        def forward(self, x):
            return self.get_submodule(self.used)(x)

    old = Old(["fc", "spare"])
    torch.save(old.state_dict(), tmp_path / "old.pth")
    with pytest.raises(UndecidedError, match=": they cannot confirm renames of these") as error:
        migrate(
            tmp_path / "old.pth", Old(["dense", "extra"]),
            inputs=INPUTS, old_module=old, device="cpu", renames={"fc.*": "dense.*"},
        )  # fmt: skip
    assert [decision.renames.old_pattern for decision in error.value.decisions] == ["spare.*"]


def test_a_prefix_is_taken_off_by_itself_only_if_nothing_else_fits(tmp_path):
    """The file of a teacher and a student: either may be meant."""
    body = torch.nn.Linear(4, 4).state_dict()
    path = tmp_path / "old.pth"

    def save(*prefixes, **extra):
        state = {f"{prefix}{key}": body[key] for prefix in prefixes for key in body}
        torch.save(state | extra, path)

    save("student.")
    assert migrate(path, torch.nn.Linear(4, 4)).verdict == "migrated: loads strictly"
    save("student.", "nets.teacher.", **{"student.scale": torch.ones(1)})
    with pytest.raises(UndecidedError):
        migrate(path, torch.nn.Linear(4, 4), force=True)


def test_a_part_of_a_larger_module_is_asked_about(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(torch.nn.Linear(4, 4).state_dict(), path)
    module = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 4), "head": torch.nn.Linear(2, 2)})
    with pytest.raises(UndecidedError, match=r"the file is the state of `encoder`.*--into encoder"):
        migrate(path, module)
    with pytest.raises(
        UndecidedError, match=r"head\.\*.* a parameter that is not in the file"
    ) as error:
        migrate(path, module, renames={"*": "encoder.*"})
    assert len(error.value.decisions) == 1
