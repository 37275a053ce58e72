"""What waits for data is never filled in silently, and no error is covered up by a migration."""

import pytest
import torch
from migration import waiting_models
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool
from ckptool.errors import PlanError
from ckptool.policy import Policy

HERE = "migration.waiting_models:"
INPUT = torch.linspace(-1.0, 2.0, 15).view(5, 3)


def fill(module):
    """Give the buffers values, as training, calibration or a loader does."""
    for number, buffer in enumerate(module.buffers(), 2):
        buffer.copy_(torch.linspace(number, 3 * number, buffer.numel()).view_as(buffer))
    return module


def save_without(path, module, key):
    state = {k: v.contiguous() for k, v in module.state_dict().items() if k != key}
    save_file(state, path)
    return state


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Router", "e_score_correction_bias"),
        ("Quantizer", "embed"),
        ("Policy", "obs_mean"),
        ("Policy", "obs_var"),
    ],
)
def test_a_lost_value_is_an_error_and_a_question(tmp_path, run_command, name, key):
    cls = getattr(waiting_models, name)
    torch.manual_seed(0)
    module = fill(cls())
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    state = save_without(source, module, key)
    fresh = cls()
    assert fresh.load_state_dict(state, strict=False).missing_keys == [key]
    assert not torch.equal(fresh(INPUT).float(), module(INPUT).float())

    (finding,) = [f for f in ckptool.diff(source, module=HERE + name).findings if f.key == key]
    assert (finding.code, finding.level) == ("CK202", "error")
    assert "the constructor fills with" in finding.message
    assert ", to be set by training, calibration or a loader" in finding.message
    assert run_command("gate", source, "-m", HERE + name).code == 1

    with pytest.raises(
        PlanError, match=rf"(?s)`{key}`: a buffer that the constructor fills.*CK202"
    ):
        ckptool.migrate(source, target, module=HERE + name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]

    report = ckptool.migrate(source, target, module=HERE + name, inject={key: "constructor"})
    assert report.verdict == "migrated: loads strictly"
    asked = cls()
    asked.load_state_dict(load_file(target), strict=True)
    assert torch.equal(asked.state_dict()[key], cls().state_dict()[key])


def test_code_that_writes_it_is_named(tmp_path):
    source = tmp_path / "old.safetensors"
    module = "modules.waiting_buffers:ParentCopies"
    save_file({"child.other": torch.arange(4.0) / 4}, source)
    findings = {f.key: f for f in ckptool.diff(source, module=module).findings}
    assert findings["child.shift"].code == "CK202"
    assert "that code outside the constructor modifies (tests/modules/waiting_buffers.py:" in (
        findings["child.shift"].message
    )


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales"])
def test_a_part_of_a_quantised_layer_is_not_made_up(tmp_path, name):
    module, key = fill(waiting_models.PackedNet()), f"layer.{name}"
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    state = save_without(source, module, key)
    fresh = waiting_models.PackedNet()
    fresh.load_state_dict(state, strict=False)
    assert not torch.equal(fresh.get_buffer(key), module.get_buffer(key))
    report = ckptool.diff(source, module=f"{HERE}PackedNet")
    assert {f.code for f in report.findings if f.level == "error"} == {"CK235"}
    with pytest.raises(PlanError, match=f"{key}.*CK202"):
        ckptool.migrate(source, target, module=f"{HERE}PackedNet")
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


def test_what_a_quantised_layer_lacks_is_not_made_up(tmp_path):
    """CK219 explains all its keys; the one with a structure is not injected either."""
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file({"layer.bias": torch.ones(4)}, source)
    module = f"{HERE}PackedNet"
    assert {f.code for f in ckptool.diff(source, module=module).findings} >= {"CK219"}
    with pytest.raises(PlanError, match=r"layer\.qweight"):
        ckptool.migrate(source, target, module=module)
    filled = dict.fromkeys(["layer.qweight", "layer.qzeros", "layer.scales"], "constructor")
    with pytest.raises(PlanError, match=r"GPTQ.*CK219.*--inject layer.g_idx=constructor"):
        ckptool.migrate(source, target, module=module, inject=filled)
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    asked = filled | {"layer.g_idx": "constructor"}
    report = ckptool.migrate(source, target, module=module, inject=asked)
    assert (report.verdict, report.exit_code) == ("migrated: loads strictly", 0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("is_dry_run", [False, True])
def test_a_result_with_an_error_is_not_written(tmp_path, suffix, is_dry_run):
    """The loading code would transpose a weight that is right: torch does so in the test."""
    module = waiting_models.Versioned()
    state = {key: t for key, t in module.state_dict().items() if key != "table"}
    source, target = tmp_path / "old.safetensors", tmp_path / f"new.{suffix}"
    save_file(state, source)
    options = {"module": f"{HERE}Versioned", "dry_run": is_dry_run}
    with pytest.raises(PlanError, match=r"has no version metadata.*CK216.*--ignore CK216"):
        ckptool.migrate(source, target, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    report = ckptool.migrate(source, target, policy=Policy(ignore=("CK216",)), **options)
    assert report.exit_code == 0
    assert target.exists() is not is_dry_run
    loaded = waiting_models.Versioned()
    loaded.load_state_dict(load_file(source) | {"table": torch.arange(2.0)})
    assert torch.equal(loaded.fc.weight, module.fc.weight.t())


def test_a_plan_file_that_names_the_key_is_followed(tmp_path):
    source, plan = tmp_path / "old.safetensors", tmp_path / "plan.toml"
    save_without(source, fill(waiting_models.Router()), "e_score_correction_bias")
    plan.write_text(
        'schema = 1\n[[ops]]\nop = "inject"\nkey = "e_score_correction_bias"\n'
        'source = "constructor"\n'
    )
    target = tmp_path / "new.safetensors"
    report = ckptool.migrate(source, target, module=f"{HERE}Router", plan=plan)
    assert report.verdict == "migrated: loads strictly"
    nn.Module.load_state_dict(waiting_models.Router(), load_file(target), strict=True)
