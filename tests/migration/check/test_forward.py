"""The last step: the migrated file is run before it gets its name."""

from importlib.metadata import PackageNotFoundError

import pytest
import reference_case
import torch

from ckptool import api, versions
from ckptool.errors import WriteError

OLD = "samples.attention:CausalAttentionWithoutBuffers"
NEW = "samples.attention:CausalAttentionWithBuffer"


def migrate(samples, target, **options):
    return api.migrate(
        samples / "model.pth",
        target,
        module=NEW,
        kwargs=reference_case.ARGUMENTS,
        inputs=("samples.attention:example_inputs",),
        **options,
    )


def check(report):
    (found,) = [one for one in report.checks if one.name == "forward"]
    return found


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_reference_case_computes_what_the_old_module_did(samples, tmp_path, suffix):
    report = migrate(samples, tmp_path / f"new{suffix}", old_module=OLD, device="simulated")
    found = check(report)
    assert found.result == "passed"
    assert "load, device, forward, equality on simulated cuda:0" in found.reason
    assert "bit for bit" in found.reason


def test_a_wrong_mask_is_not_placed(samples, tmp_path):
    target = tmp_path / "new.pth"
    with pytest.raises(
        WriteError, match=r"not written: verification fails at equality: .* differs"
    ):
        migrate(samples, target, old_module=OLD, inject={"mask": "zeros"})
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_leaves_a_tensor_behind_is_found_before_the_file_is_placed(tmp_path, samples):
    state = torch.load(samples / "model.pth")
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "old.pth")
    with pytest.raises(WriteError, match=r"fails at device on simulated cuda:0: `mask` is on cpu"):
        api.migrate(
            tmp_path / "old.pth",
            tmp_path / "new.pth",
            module=OLD,
            kwargs=reference_case.ARGUMENTS,
            inputs=("samples.attention:example_inputs",),
            device="simulated",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["old.pth"]


def test_without_inputs_it_is_skipped_with_that_reason(samples, tmp_path):
    report = api.migrate(
        samples / "model.pth", tmp_path / "n.pth", module=NEW, kwargs=reference_case.ARGUMENTS
    )
    assert (check(report).result, check(report).reason) == (
        "skipped",
        "not run (pass --input or --inputs)",
    )


def test_tied_names_that_a_safetensors_leaves_out_are_run_too(tmp_path):
    state = torch.nn.Linear(3, 3).state_dict()
    torch.save({"0.weight": state["weight"], "1.weight": state["weight"]}, tmp_path / "t.pth")
    report = api.migrate(
        tmp_path / "t.pth", tmp_path / "t.safetensors", module=_tied(), inputs=("float32[2,3]",)
    )
    assert check(report).result == "passed"


def _tied() -> torch.nn.Module:
    first, second = (torch.nn.Linear(3, 3, bias=False) for _ in range(2))
    second.weight = first.weight
    return torch.nn.Sequential(first, second)


def test_a_checkout_that_is_not_installed_can_migrate(samples, tmp_path, monkeypatch):
    """On a machine that cannot install, the version was looked up, and a traceback came of it."""
    monkeypatch.setattr(versions, "version", _not_installed)
    report = migrate(samples, tmp_path / "new.safetensors", device="cpu")
    assert report.exit_code == 0


def _not_installed(name: str) -> str:
    raise PackageNotFoundError(name)
